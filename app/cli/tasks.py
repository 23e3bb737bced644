"""`softswap tasks`: the registry's folder, or a running server's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options.json_output import AsJson, write_json
from app.cli.options.setting_options import ApiKey, Device, Model, RegistryFolder, Url, find_server, read_settings
from app.cli.options.task_options import Alias, Description, NewTask, TaskOrVersion
from app.cli.registries.registries import find_registry, open_folder
from app.cli.tokens import TokensAsked, print_tokens, tokens_here, tokens_of_server
from app.cli.views.task_view import print_fields, print_tasks
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.measure.promote import GateRequest

tasks = typer.Typer(
    help="List, show, add, remove and export tasks; move aliases.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Force = Annotated[bool, typer.Option("--force", help="Move the alias whatever its gate says.")]


@tasks.command("ls")
def list_tasks(
    as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, registry: RegistryFolder = None
) -> None:
    """List the tasks: live version, kind, labels, main figures."""
    found = find_registry(url, api_key, registry).tasks()
    if as_json:
        for task in found:
            write_json(task)
    else:
        print_tasks(found)


@tasks.command()
def show(
    *,
    task: TaskOrVersion,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show its virtual tokens instead.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --tokens: draw them into this SVG file.", dir_okay=False)
    ] = None,
    compare: Annotated[str | None, typer.Option(help="With --tokens: another version, such as sentiment@2.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="With --tokens: examples to measure on what each virtual token does.", exists=True,
                     dir_okay=False),
    ] = None,
    num_nearest: Annotated[
        int | None, typer.Option("--nearest", help="With --tokens: near tokens of each. (default: 5)")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:  # fmt: skip
    """Show one task with its versions and aliases, one version, or what can be seen of a version's virtual tokens.

    A token near a virtual token is a hint and not a reading; what a virtual token does is what changes without it.

        softswap tasks show sentiment
        softswap tasks show sentiment --tokens --plot sentiment.svg
        softswap tasks show sentiment@2 --tokens --compare sentiment@1 --data validation.jsonl
    """
    if tokens:
        asked = _ask_tokens(task, num_nearest, compare, data, plot)
        server = find_server(url, api_key)
        if server is None:
            settings = read_settings(model=model, registry=registry, device=device, watch_interval=0)
            seen = tokens_here(settings, asked)
        else:
            seen = tokens_of_server(server, asked)
        write_json(seen) if as_json else print_tokens(seen)
        return
    if plot or compare or data or num_nearest:
        raise typer.BadParameter("--plot, --compare, --data and --nearest belong to --tokens", param_hint="--tokens")
    name, _, selector = task.partition("@")
    shown = find_registry(url, api_key, registry).show(name, selector)
    if as_json:
        write_json(shown)
    else:
        print_fields(shown)


@tasks.command()
def add(
    *,
    path: Annotated[
        Path | None, typer.Argument(help="A PEFT folder, a .safetensors or a .npy file.", show_default=False)
    ] = None,
    task: NewTask,
    text: Annotated[str | None, typer.Option(help="A hand-written prompt instead of a file.")] = None,
    template: Annotated[
        str | None, typer.Option(help=r"How an input becomes text: 'Review: {input}\nSentiment: {target}'.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What the task answers with, separated by commas.")] = None,
    description: Description = "",
    alias: Alias = "live",
    force: Force = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    model: Model = None,
    registry: RegistryFolder = None,
    device: Device = None,
) -> None:
    r"""Publish a prompt as a task's next version.

    \n in --template and --text stands for a new line. The prompt must have been tuned for the backbone in use.

        softswap tasks add my-peft-checkpoint/ --task intent --template '{input}\nIntent: {target}' --labels pay,cancel
        softswap tasks add --text 'Translate to French.' --task translate
    """
    if (path is None) == (text is None):
        raise typer.BadParameter("give a path or --text", param_hint="path")
    given: dict[str, Any] = {
        "template": None if template is None else template.replace("\\n", "\n"),
        "labels": [label.strip() for label in labels.split(",") if label.strip()] if labels else None,
        "description": description,
        "alias": alias or None,
        "force": force,
    }
    written = None if text is None else text.replace("\\n", "\n")
    place = find_registry(url, api_key, registry, model=model, device=device)
    version = place.add(task, path, written, given)
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
    find_registry(url, api_key, registry).remove(task, selector)
    typer.echo(f"{name} removed")


@tasks.command("alias")
def move_alias(
    *,
    task: Annotated[str, typer.Argument(help="The task's name.")],
    alias: Annotated[str, typer.Argument(help="The alias: live is what the bare task name means.")],
    target: Annotated[str, typer.Argument(help="A version's number, or two with shares: 3=0.9,4=0.1.")],
    gate: Annotated[
        Path | None,
        typer.Option(help="Examples: from now on the alias moves to no version that does worse on them.",
                     exists=True, dir_okay=False),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="With --gate: what must not fall. (default: accuracy, or ROUGE-L of texts)")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="With --gate: by how much it may fall.", min=0, max=1)] = 0.0,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Take the alias's gate away first.")] = False,
    force: Force = False,
    model: Model = None,
    device: Device = None,
    url: Url = None,
    api_key: ApiKey = None,
    registry: RegistryFolder = None,
) -> None:  # fmt: skip
    """Move an alias: roll out, roll back, or share requests between two versions.

    With a gate the versions are measured on its examples, here or on the server, and a lower score is refused. A server
    that watches the folder follows within seconds; with --url it follows at once.

        softswap tasks alias sentiment live 3
        softswap tasks alias sentiment live 3=0.9,4=0.1
        softswap tasks alias sentiment live 3 --gate test.jsonl --metric macro_f1 --tolerance 0.01
    """
    wanted = _parse_target(target)
    if gate is None and (metric or tolerance):
        raise typer.BadParameter("--metric and --tolerance belong to --gate", param_hint="--gate")
    place = find_registry(url, api_key, registry, model=model, device=device)
    if no_gate:
        place.remove_gate(task, alias)
    place.set_alias(task, alias, wanted, gate=_read_gate(gate, metric, tolerance), force=force)
    typer.echo(f"{task}@{alias} is {target}" + (f", gated by {gate.name}" if gate else ""))


@tasks.command()
def export(
    task: TaskOrVersion,
    folder: Annotated[Path, typer.Argument(help="New folder to write.", show_default=False)],
    registry: RegistryFolder = None,
) -> None:
    """Write a version as a folder that PeftModel.from_pretrained loads."""
    if folder.exists():
        raise InvalidInput(f"{folder} exists already; name a new folder", param="folder")
    source = open_folder(registry)
    version = source.resolve(task)
    files = source.files(version)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    typer.echo(f"{version.id} written to {folder}")


def _ask_tokens(
    task: str, num_nearest: int | None, compare: str | None, data: Path | None, plot: Path | None
) -> TokensAsked:
    if data is None:
        return TokensAsked(task, num_nearest, compare, (), plot)
    from app.measure.example_file import read_dataset

    return TokensAsked(task, num_nearest, compare, read_dataset(data).examples, plot)


def _read_gate(data: Path | None, metric: str | None, tolerance: float) -> GateRequest | None:
    if data is None:
        return None
    from app.measure.example_file import read_dataset
    from app.measure.promote import GateRequest

    return GateRequest(read_dataset(data).examples, metric, tolerance)


def _parse_target(text: str) -> int | dict[int, float]:
    try:
        if "=" not in text:
            return int(text)
        pairs = (pair.split("=") for pair in text.split(","))
        return {int(number): float(share) for number, share in pairs}
    except ValueError:
        raise typer.BadParameter("a version's number, or two with shares: 3=0.9,4=0.1", param_hint="target") from None
