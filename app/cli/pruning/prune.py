"""`softswap tasks prune`: remove the versions that nothing names."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli import options
from app.cli.places.paths import require_registry
from app.cli.places.remote_server import RemoteServer, Unreachable
from app.cli.pruning.places import FolderVersions, ServerVersions
from app.cli.views.rows import print_rows
from app.cli.views.task_view import main_figure
from app.errors import InvalidInput, RegistryUnavailable, SoftswapError
from app.registry.reference import require_task_name
from app.settings import Settings

FACTS = ("id", "backbone_name", "kind", "num_bytes", "created_at", "metrics")


@options.takes_place("registry", "state")
def prune(
    *,
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks to look at. (default: all)")] = None,
    keep: Annotated[int, typer.Option(help="Newest versions of a task, for each backbone, that stay.", min=0)] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing them.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON, one object per line; without --yes nothing is removed.")
    ] = False,
    place: RemoteServer | Settings,
) -> None:
    """Remove versions that neither an alias, on any backbone, nor a tuning job names: list them, and ask.

    A job names its result and its checkpoints until it is forgotten (softswap jobs rm). While it has not ended, its
    task and what it continues from stay as they are. What cannot be read stays too, and a server removes versions for
    its own backbone only.

        softswap tasks prune
        softswap tasks prune sentiment intent --keep 2 --yes
    """
    names = list(tasks or ())
    for name in names:
        require_task_name(name)
    source = _open(place)
    unused = source.find_unused(names, keep)
    if as_json and not yes:
        _write(unused, is_removed=False)
        return
    if not as_json:
        _print(unused)
    if unused and not yes:
        _confirm(len(unused))
        still = {version["id"] for version in source.find_unused(names, keep)}  # the answer may have taken its time
        unused = [version for version in unused if version["id"] in still]
    removed = [version for version in unused if _remove(source, version)]
    if as_json:
        _write(removed, is_removed=True)
    elif unused:
        typer.echo(f"{_count(removed)} removed")


def _open(place: RemoteServer | Settings) -> FolderVersions | ServerVersions:
    if isinstance(place, RemoteServer):
        return ServerVersions(place)
    require_registry(place)
    return FolderVersions(place)


def _print(unused: Sequence[dict[str, Any]]) -> None:
    if not unused:
        typer.echo("an alias or a job names every version, or it is kept")
        return
    print_rows(("version", "created", "kind", "size", "figure", "backbone"), map(_cells, unused))
    typer.echo(f"{_count(unused)}, {_size(sum(version['num_bytes'] for version in unused))}")


def _cells(version: dict[str, Any]) -> tuple[str, ...]:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(version["created_at"]))
    size, figure = _size(version["num_bytes"]), main_figure(version["metrics"])
    return version["id"], created, version["kind"], size, figure, version["backbone_name"]


def _count(versions: Sequence[dict[str, Any]]) -> str:
    return f"{len(versions)} version{'' if len(versions) == 1 else 's'}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"


def _confirm(num_versions: int) -> None:
    """Raises InvalidInput: there is no one to ask."""
    if not has_terminal():
        raise InvalidInput("nothing is removed without a terminal to confirm it at; say so with --yes", param="yes")
    typer.confirm(f"Remove {num_versions} of them for good?", abort=True)


def has_terminal() -> bool:
    return sys.stdin.isatty()


def _remove(source: FolderVersions | ServerVersions, version: dict[str, Any]) -> bool:
    try:
        source.remove(version)
    except (RegistryUnavailable, Unreachable):
        raise
    except SoftswapError as error:  # an alias moved to it, or it is gone, meanwhile
        typer.echo(f"{version['id']} stays: {error.message}", err=True)
        return False
    return True


def _write(versions: Sequence[dict[str, Any]], *, is_removed: bool) -> None:
    for version in versions:
        options.write_json({**{name: version[name] for name in FACTS}, "is_removed": is_removed})
