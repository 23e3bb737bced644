"""How a person follows a tuning run, and ends it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING

import typer

from app.cli.options.json_output import write_json

if TYPE_CHECKING:
    from app.tuning.run.events import TuneEvent


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks tuning to end, the second one ends the command."""
    has_asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal has_asked
        if has_asked:
            raise KeyboardInterrupt
        has_asked = True
        typer.echo("ending after this update; interrupt again to publish nothing", err=True)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: has_asked
    finally:
        signal.signal(signal.SIGINT, previous)


class TuningView:
    """Shows a run's events on stderr: a bar if it is a terminal, lines otherwise; with --json, JSON on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._as_json = as_json
        self._is_live = sys.stderr.isatty() and not as_json
        self._score = ""
        self._bar = Progress(
            TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f} {task.fields[score]}"),
            console=Console(stderr=True), disable=not self._is_live,
        )  # fmt: skip
        self._row = self._bar.add_task("tuning", total=None, loss=float("nan"), score="")

    def __enter__(self) -> TuningView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: TuneEvent) -> None:
        from app.tuning.run.events import Evaluated, MembersDropped, StepDone, TuningStarted

        if self._as_json:
            write_json({"event": type(event).__name__, **asdict(event)})
        elif isinstance(event, TuningStarted):
            self._bar.update(self._row, total=event.num_steps)
            typer.echo(
                f"{event.num_train} examples, {event.num_validation} for validation, {len(event.members)} prompts "
                f"with {event.num_parameters} parameters in all, {event.num_steps} updates",
                err=True,
            )
        elif isinstance(event, StepDone):
            self._bar.update(self._row, completed=event.step, loss=event.loss, score=self._score)
        elif isinstance(event, Evaluated):
            value = f"validation {event.metric} {event.value:.3f}"
            self._score = value if event.is_best else self._score
            if not self._is_live:
                best = " (best)" if event.is_best else ""
                typer.echo(f"update {event.step}: member {event.member}: {value}{best}", err=True)
        elif isinstance(event, MembersDropped) and not self._is_live:
            numbers = ", ".join(map(str, event.members))
            typer.echo(f"update {event.step}: dropped ({event.reason}): members {numbers}", err=True)
