"""`softswap tasks`: the registry's folder, or a running server's."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import ApiKey, AsJson, Device, Model, RegistryFolder, Url, find_server, read_settings, write_json
from app.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from app.cli.remote import RemoteServer
    from app.model.backbone import Backbone
    from app.registry.registry import Registry

tasks = typer.Typer(
    help="List, show, add, remove and export tasks; move aliases.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TaskName = Annotated[str, typer.Argument(help="The task's name.", show_default=False)]
TENSOR_FILE = "adapter_model.safetensors"


@tasks.command("ls")
def list_tasks(
    as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, registry: RegistryFolder = None
) -> None:
    """List the tasks: live version, kind, labels, main figures."""
    server = find_server(url, api_key)
    found = _list_remote(server) if server else [_task(summary) for summary in _open(registry).tasks()]
    if as_json:
        for task in found:
            write_json(task)
    else:
        _print_tasks(found)


@tasks.command()
def show(
    task: Annotated[str, typer.Argument(help="A task, or a version of it: sentiment, sentiment@3.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    registry: RegistryFolder = None,
) -> None:
    """Show one task with its versions and aliases, or one version."""
    name, _, number = task.partition("@")
    server = find_server(url, api_key)
    shown = _show_remote(server, name, number) if server else _show_here(_open(registry), name, number)
    if as_json:
        write_json(shown)
    else:
        _print_object(shown)


@tasks.command()
def add(
    *,
    path: Annotated[
        Path | None, typer.Argument(help="A PEFT folder, a .safetensors or a .npy file.", show_default=False)
    ] = None,
    task: Annotated[str, typer.Option(help="Name to publish under.")],
    text: Annotated[str | None, typer.Option(help="A hand-written prompt instead of a file.")] = None,
    template: Annotated[
        str | None, typer.Option(help=r"How an input becomes text: 'Review: {input}\nSentiment: {target}'.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What the task answers with, separated by commas.")] = None,
    description: Annotated[str, typer.Option(help="One sentence for people.")] = "",
    alias: Annotated[str, typer.Option(help="Alias that shall mean the new version; '' moves none.")] = "live",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:
    r"""Publish a prompt as a task's next version.

        softswap tasks add my-peft-checkpoint/ --task intent --template '{input}\nIntent: {target}' --labels pay,cancel
        softswap tasks add --text 'Translate to French.' --task translate

    \n in --template and --text stands for a new line. The prompt must have been tuned for the backbone in use.
    """
    if (path is None) == (text is None):
        raise typer.BadParameter("give a path or --text", param_hint="PATH")
    given: dict[str, Any] = {
        "template": None if template is None else template.replace("\\n", "\n"),
        "labels": [label.strip() for label in labels.split(",") if label.strip()] if labels else None,
        "description": description,
        "alias": alias or None,
    }
    written = None if text is None else text.replace("\\n", "\n")
    server = find_server(url, api_key)
    if server is not None:
        version = _add_remote(server, task, path, written, given)
    else:
        backbone = _load_backbone(model, device)
        version = _add_here(_open(registry, backbone), backbone, task, path=path, text=written, given=given)
    if as_json:
        write_json(version)
    else:
        typer.echo(f"{version['id']} published: {version['num_virtual_tokens']} virtual tokens, {version['kind']}")


@tasks.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="A task, a version (sentiment@3) or an alias (sentiment@canary).")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a whole task goes.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    registry: RegistryFolder = None,
) -> None:
    """Remove a task, a version or an alias. Requests that already run end on the version they began with."""
    task, _, selector = name.partition("@")
    if not selector and not yes and sys.stdin.isatty():
        typer.confirm(f"Remove {task} with all its versions?", abort=True)
    server = find_server(url, api_key)
    if server is not None:
        _remove_remote(server, task, selector)
    else:
        _remove_here(_open(registry), task, selector)
    typer.echo(f"{name} removed")


@tasks.command("alias")
def move_alias(
    *,
    task: TaskName,
    alias: Annotated[str, typer.Argument(help="The alias: live is what the bare task name means.")],
    target: Annotated[str, typer.Argument(help="A version's number, or two with shares: 3=0.9,4=0.1.")],
    url: Url = None,
    api_key: ApiKey = None,
    registry: RegistryFolder = None,
) -> None:
    """Move an alias: roll out, roll back, or share requests between two versions.

    softswap tasks alias sentiment live 3
    softswap tasks alias sentiment live 3=0.9,4=0.1
    """
    meant = _parse_target(target)
    server = find_server(url, api_key)
    if server is None:
        _open(registry).set_alias(task, alias, meant)
    else:
        from app.cli.remote import task_path

        weights = (
            {"weights": {str(number): share for number, share in meant.items()}} if isinstance(meant, dict) else {}
        )
        server.call("PUT", task_path(task, "aliases", alias), weights or {"version": meant})
    typer.echo(f"{task}@{alias} is {target}")


@tasks.command()
def export(
    task: Annotated[str, typer.Argument(help="A task, or a version of it: sentiment, sentiment@3.")],
    folder: Annotated[Path, typer.Argument(help="New folder to write.", show_default=False)],
    registry: RegistryFolder = None,
) -> None:
    """Write a version as a folder that PeftModel.from_pretrained loads."""
    if folder.exists():
        raise InvalidInput(f"{folder} exists already; name a new folder", param="folder")
    source = _open(registry)
    version = source.resolve(task)
    files = source.files(version)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    typer.echo(f"{version.id} written to {folder}")


def _open(folder: Path | None, backbone: Backbone | None = None) -> Registry:
    from app.registry.registry import Registry
    from app.registry.store import FileStore

    path = read_settings(registry=folder).registry
    if backbone is None and not path.is_dir():
        raise NotFound(f"there is no registry at {path}; name one with --registry")
    return Registry(FileStore(path), backbone)


def _load_backbone(model: str | None, device: str | None) -> Backbone:
    from app.main import load_backbone

    return load_backbone(read_settings(model=model, device=device))


def _parse_target(text: str) -> int | dict[int, float]:
    try:
        if "=" not in text:
            return int(text)
        pairs = (pair.split("=") for pair in text.split(","))
        return {int(number): float(share) for number, share in pairs}
    except ValueError:
        raise typer.BadParameter("a version's number, or two with shares: 3=0.9,4=0.1", param_hint="TARGET") from None


def _task(summary: Any) -> dict[str, Any]:
    """As `GET /v1/tasks` shows it."""
    from app.api.routes.tasks import task_object

    return task_object(summary).model_dump()


def _version(version: Any) -> dict[str, Any]:
    from app.api.routes.tasks import version_object

    return version_object(version).model_dump()


def _show_here(registry: Registry, task: str, selector: str) -> dict[str, Any]:
    if selector:
        return _version(registry.resolve(f"{task}@{selector}"))
    versions = [_version(version) for version in registry.versions(task)]
    found = next((each for each in registry.tasks() if each.task == task), None)
    if found is None:
        raise NotFound(f"there is no task {task}")
    return {**_task(found), "versions": versions}


def _list_remote(server: RemoteServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    has_more = True
    while has_more:
        after = f"&after={found[-1]['id']}" if found else ""
        page = server.call("GET", f"/v1/tasks?limit=1000{after}")
        found += page["data"]
        has_more = page["has_more"]
    return found


def _show_remote(server: RemoteServer, task: str, selector: str) -> dict[str, Any]:
    from app.cli.remote import task_path

    if selector:
        version: dict[str, Any] = server.call("GET", task_path(task, "versions", selector))
        return version
    versions = server.call("GET", task_path(task, "versions") + "?limit=1000")["data"]
    return {**server.call("GET", task_path(task)), "versions": versions[::-1]}


def _add_here(
    registry: Registry, backbone: Backbone, task: str, *, path: Path | None, text: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    from app.model.layout import Template
    from app.registry.binding import bind_text, norm_warnings
    from app.registry.importers import describe_checkpoint, read_checkpoint

    if path is not None and not path.exists():
        raise InvalidInput(f"there is no {path}", param="path")
    prompt = bind_text(text or "", backbone) if path is None else read_checkpoint(path, backbone)
    for warning in norm_warnings(prompt, backbone):
        typer.echo(f"warning: {warning}", err=True)
    version = registry.publish(
        task,
        prompt,
        template=None if given["template"] is None else Template(given["template"]),
        labels=given["labels"] or (),
        description=given["description"],
        provenance={} if path is None else describe_checkpoint(path),
        alias=given["alias"],
    )
    return _version(version)


def _add_remote(
    server: RemoteServer, task: str, path: Path | None, text: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    from app.cli.remote import task_path

    route = task_path(task, "versions")
    if path is None:
        return dict(server.call("POST", route, {"text": text, **given}))
    file = path / TENSOR_FILE if path.is_dir() else path
    if not file.is_file():
        raise InvalidInput(f"there is no {file}", param="path")
    return dict(server.upload(route, file=file.read_bytes(), metadata=given))


def _remove_here(registry: Registry, task: str, selector: str) -> None:
    if not selector:
        registry.delete_task(task)
    elif selector.isdigit():
        registry.delete_version(task, int(selector))
    else:
        registry.delete_alias(task, selector)


def _remove_remote(server: RemoteServer, task: str, selector: str) -> None:
    from app.cli.remote import task_path

    kind = "versions" if selector.isdigit() else "aliases"
    server.call("DELETE", task_path(task, kind, selector) if selector else task_path(task))


def _print_tasks(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "live", "versions", "kind", "virtual tokens", "labels", "figures", box=None, pad_edge=False)
    for task in found:
        live = task["live"]
        facts = [live["number"], task["num_versions"], live["kind"], live["num_virtual_tokens"]] if live else ["-"] * 4
        figures = _figures(live["metrics"]) if live else ""
        table.add_row(task["id"], *map(str, facts), str(len(live["labels"]) or "-") if live else "-", figures)
    Console(soft_wrap=True).print(table)


def _figures(metrics: dict[str, Any]) -> str:
    numbers = [(name, value) for name, value in metrics.items() if isinstance(value, float)]
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers[:2])


def _print_object(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        if name == "versions":
            for version in value:
                created = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["created_at"]))
                typer.echo(f"  {version['id']:<24} {created}  {version['kind']:<10} {_figures(version['metrics'])}")
        elif name == "created_at":
            typer.echo(f"{name}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value))}")
        elif name != "object" and value not in ({}, [], "", None):
            typer.echo(f"{name}: {value['id'] if name == 'live' else value}")
