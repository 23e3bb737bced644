"""`softswap tasks`: the tasks of a registry folder, or of a running server."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import options
from app.cli.places.paths import (
    require_new_file,
    require_new_folder,
    require_registry,
    require_registry_to_write,
)
from app.cli.places.remote_server import RemoteServer
from app.cli.views.data_view import show_reading
from app.cli.views.task_view import print_fields, print_tasks
from app.cli.views.tokens_view import print_tokens
from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.example_file import read_dataset
from app.registry.aliases import AliasTarget, require_target
from app.registry.reference import is_alias_name, is_number, require_alias_name, require_task_name
from app.settings import Settings

if TYPE_CHECKING:
    from app.cli.places.folder_registry import FolderRegistry
    from app.measure.promote import GateRequest

tasks = typer.Typer(
    help="List, show, add, remove, prune and export tasks; move aliases.",
    no_args_is_help=True,
)
Force = Annotated[bool, typer.Option("--force", help="Move the alias even if its gate fails.")]


@tasks.command("ls")
@options.takes_place("registry")
def list_tasks(*, as_json: options.AsJson = False, place: RemoteServer | Settings) -> None:
    """List the tasks with live version, kind, labels and main figure."""
    options.write(_open(place).tasks(), print_tasks, as_json=as_json)


@tasks.command()
@options.takes_place("model", "registry", "device")
def show(
    *,
    task: options.TaskOrVersion,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show its virtual tokens instead.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --tokens: draw them into this SVG file.", dir_okay=False)
    ] = None,
    compare: Annotated[str | None, typer.Option(help="With --tokens: version to compare, such as sentiment@2.")] = None,
    data: Annotated[
        Path | None, options.existing_file("With --tokens: examples to measure the effect of each virtual token on.")
    ] = None,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    num_nearest: Annotated[
        int | None,
        typer.Option("--nearest", help="With --tokens: number of nearest vocabulary tokens. (default: 5)", min=1),
    ] = None,
    as_json: options.AsJson = False,
    place: RemoteServer | Settings,
) -> None:
    """Show a task with its versions and aliases, one version, or a version's virtual tokens.

    A nearby vocabulary token is a hint, not a translation. What a virtual token does shows in what changes without it.

        softswap tasks show sentiment
        softswap tasks show sentiment --tokens --plot sentiment.svg
        softswap tasks show sentiment@2 --tokens --compare sentiment@1 --data validation.jsonl
    """
    if not tokens and (plot or compare or data or num_nearest):
        raise typer.BadParameter("--plot, --compare, --data and --nearest belong to --tokens", param_hint="--tokens")
    if data is None and (input_field or target_field):
        raise typer.BadParameter("--input-field and --target-field belong to --data", param_hint="--data")
    if plot is not None:
        require_new_file(plot, param="plot")
    if tokens:
        examples = _read_examples(data, input_field, target_field)
        asked: dict[str, Any] = {"num_nearest": num_nearest, "compare": compare, "examples": examples}
        options.write(_open(place).show_tokens(task, plot, **asked), print_tokens, as_json=as_json)
    else:
        name, _, selector = task.partition("@")
        options.write(_open(place).show(name, selector), print_fields, as_json=as_json)


@tasks.command()
@options.takes_place("model", "registry", "device")
def add(
    *,
    path: Annotated[
        Path | None, typer.Argument(help="A PEFT folder, a .safetensors or a .npy file.", show_default=False)
    ] = None,
    task: options.NewTask,
    text: Annotated[str | None, typer.Option(help="A hand-written prompt instead of a file.")] = None,
    source_task: Annotated[
        int | None, typer.Option(help="Which task of a multitask prompt tuning checkpoint, starting at 0.", min=0)
    ] = None,
    template: options.TemplateText = None,
    labels: Annotated[str | None, typer.Option(help="Possible answers, separated by commas.")] = None,
    description: options.Description = "",
    alias: options.Alias = "live",
    force: Force = False,
    as_json: options.AsJson = False,
    place: RemoteServer | Settings,
) -> None:
    r"""Publish a prompt as a task's next version.

    \n in --template and --text means a new line. The prompt must have been tuned for the backbone in use.

        softswap tasks add my-peft-checkpoint/ --task intent --template '{input}\nIntent: {target}' --labels pay,cancel
        softswap tasks add --text 'Translate to French.' --task translate
        softswap tasks add my-multitask-checkpoint/ --source-task 2 --task tone
    """
    if (path is None) == (text is None):
        raise typer.BadParameter("give a path or --text", param_hint="path")
    if text is not None and source_task is not None:
        raise typer.BadParameter("--source-task belongs to a path", param_hint="--source-task")
    require_task_name(task)
    if alias:
        require_alias_name(alias)
    if path is not None and not path.exists():
        raise InvalidInput(f"there is no {path}", param="path")
    parsed = options.parse_template(template)
    given: dict[str, Any] = {
        "template": parsed and parsed.text,
        "labels": options.parse_labels(labels) or None,
        "description": description,
        "alias": alias or None,
        "force": force,
        **({} if source_task is None else {"source_task": source_task}),
    }
    if isinstance(place, Settings):
        require_registry_to_write(place)
    version = _open(place, may_be_new=True).add(task, path, None if text is None else options.unescape(text), given)
    options.write(version, _print_published, as_json=as_json)


@tasks.command("rm")
@options.takes_place("registry")
def remove(
    *,
    name: Annotated[str, typer.Argument(help="A task, a version (sentiment@3) or an alias (sentiment@canary).")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing a whole task.")] = False,
    place: RemoteServer | Settings,
) -> None:
    """Remove a task, a version or an alias. Running requests finish on the version they started with."""
    task, selector = _parse_removal(name)
    if not selector and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"{task} would go with all of its versions; say so with --yes", param="yes")
        typer.confirm(f"Remove {task} and all of its versions?", abort=True)
    _open(place).remove(task, selector)
    typer.echo(f"{name} removed")


@tasks.command("alias")
@options.takes_place("model", "device", "registry")
def move_alias(
    *,
    task: Annotated[str, typer.Argument(help="The task's name.")],
    alias: Annotated[str, typer.Argument(help="The alias; `live` is what the bare task name means.")],
    target: Annotated[str, typer.Argument(help="A version number, or two with shares: 3=0.9,4=0.1.")],
    gate: Annotated[
        Path | None,
        options.existing_file("Examples: from now on, the alias does not move to a version that scores lower on them."),
    ] = None,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    metric: Annotated[
        str | None, typer.Option(help="With --gate: metric that must not drop. (default: accuracy; texts: ROUGE-L)")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="With --gate: how much it may drop.", min=0, max=1)] = 0.0,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Remove the alias's gate first.")] = False,
    force: Force = False,
    place: RemoteServer | Settings,
) -> None:
    """Move an alias: roll out, roll back, or split requests between two versions.

    With a gate, both versions are measured on its examples, here or on the server, and a lower score is refused. A
    server that watches the folder follows within seconds; with --url it follows at once.

        softswap tasks alias sentiment live 3
        softswap tasks alias sentiment live 3=0.9,4=0.1
        softswap tasks alias sentiment live 3 --gate test.jsonl --metric macro_f1 --tolerance 0.01
    """
    require_alias_name(alias)
    version = _parse_target(target)
    if gate is not None and no_gate:
        raise typer.BadParameter("give --gate or --no-gate, not both", param_hint="--gate")
    if gate is None and (metric or tolerance or input_field or target_field):
        raise typer.BadParameter(
            "--metric, --tolerance, --input-field and --target-field belong to --gate", param_hint="--gate"
        )
    asked = None if gate is None else _make_gate(_read_examples(gate, input_field, target_field), metric, tolerance)
    registry = _open(place)
    if no_gate:
        registry.remove_gate(task, alias)
    registry.set_alias(task, alias, version, gate=asked, force=force)
    typer.echo(f"{task}@{alias} is {target}" + (f", gated by {gate.name}" if gate else ""))


@tasks.command()
@options.takes_settings("registry")
def export(
    *,
    task: options.TaskOrVersion,
    folder: Annotated[Path, typer.Argument(help="New folder to create.", show_default=False)],
    initial: Annotated[
        bool,
        typer.Option("--initial/--no-initial", help="With the rows that its tuning started from, if they were kept."),
    ] = True,
    settings: Settings,
) -> None:
    """Write a version as a folder that PeftModel.from_pretrained loads."""
    require_new_folder(folder, param="folder")
    require_registry(settings)
    from app.cli.places.folder_registry import open_folder

    source = open_folder(settings)
    version = source.resolve(task)
    files = source.files(version, with_initial=initial)
    folder.mkdir(parents=True)
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    typer.echo(f"{version.id} written to {folder}")


def _open(place: RemoteServer | Settings, *, may_be_new: bool = False) -> FolderRegistry | RemoteServer:
    """What the commands work on: a folder here or a running server. Both show tasks as `/v1/tasks` does.

    Args: may_be_new: whether the folder may be one that is yet to be made. Raises NotFound, InvalidInput.
    """
    if isinstance(place, RemoteServer):
        return place
    if not may_be_new:
        require_registry(place)
    from app.cli.places.folder_registry import FolderRegistry

    return FolderRegistry(place)


def _print_published(version: dict[str, Any]) -> None:
    typer.echo(f"{version['id']} published: {version['num_virtual_tokens']} virtual tokens, {version['kind']}")


def _read_examples(data: Path | None, input_field: str | None, target_field: str | None) -> Sequence[Example]:
    if data is None:
        return ()
    dataset = read_dataset(data, input_field=input_field, target_field=target_field)
    show_reading(dataset)
    return dataset.examples


def _make_gate(examples: Sequence[Example], metric: str | None, tolerance: float) -> GateRequest:
    from app.measure.promote import GateRequest

    return GateRequest(examples, metric, tolerance)


def _parse_target(text: str) -> AliasTarget:
    parts = [part.partition("=") for part in text.split(",")]
    try:
        numbers = [_parse_number(number) for number, _, _ in parts]
        if "=" not in text and len(numbers) == 1:
            return numbers[0]
        weights = dict(zip(numbers, (float(share) for _, _, share in parts), strict=True))
    except ValueError:
        raise typer.BadParameter("give a number, or two with shares: 3=0.9,4=0.1", param_hint="target") from None
    return require_target(weights)


def _parse_number(text: str) -> int:
    """Raises ValueError."""
    return int(text if is_number(text) else "")


def _parse_removal(name: str) -> tuple[str, str]:
    """Task and number or alias; the latter is empty for the whole task. Raises InvalidInput."""
    task, at, selector = name.partition("@")
    require_task_name(task)
    if at and not selector:
        raise InvalidInput(f"{name} ends with @; give {task}, or {task}@ and a version or alias", param="name")
    if at and not is_number(selector) and not is_alias_name(selector):
        raise InvalidInput(f"{name} is no version or alias, such as {task}@3 and {task}@canary", param="name")
    return task, selector
