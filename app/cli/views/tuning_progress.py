"""What `softswap tune` and `softswap distill` show while they run."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import typer

from app.cli.options import write_json
from app.tuning.budget import in_words

if TYPE_CHECKING:
    from app.tuning.run.events import (
        Evaluated,
        MembersDropped,
        OpeningStarted,
        PromptWritten,
        StepDone,
        Taught,
        TeacherAnswered,
        TuneEvent,
        TuningPlanned,
        TuningStarted,
        TuningStopped,
        Warned,
    )

LINE_EVERY_S: Final = 30.0
MAX_SHOWN_CHARS: Final = 100
REASON_TO_WORDS: Final = {
    "finished": "all updates are done",
    "budget": "the budget is spent",
    "patience": "the last measurements brought no progress",
    "not finite": "no prompt's loss is finite any more",
    "stopped": "it was interrupted",
}


class TuningProgress:
    """Shows a run's events on stderr: a bar with the time left if it is a terminal, else a line every 30 seconds.

    With --json, each event is an object on stdout.
    """

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._as_json = as_json
        self._is_live = sys.stderr.isatty() and not as_json
        self._score = ""
        self._line_s = time.monotonic()
        self._bar = Progress(
            TextColumn("tuning"), BarColumn(), TextColumn("{task.fields[updates]}{task.fields[score]}"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True), disable=not self._is_live,
        )  # fmt: skip
        self._row = self._bar.add_task("tuning", total=None, updates="", score="", left="")

    def __enter__(self) -> TuningProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: TuneEvent) -> None:
        name = type(event).__name__
        if self._as_json:
            write_json({"event": name, **asdict(event)})
            return
        shows: dict[str, Any] = {
            "TeacherAnswered": self._answered,
            "Taught": self._taught,
            "OpeningStarted": self._opening,
            "PromptWritten": self._written,
            "TuningPlanned": self._planned,
            "TuningStarted": self._started,
            "StepDone": self._step,
            "Evaluated": self._evaluated,
            "MembersDropped": self._dropped,
            "Warned": self._warned,
            "TuningStopped": self._stopped,
        }
        if name in shows:
            shows[name](event)

    def _answered(self, event: TeacherAnswered) -> None:
        left = "" if event.left_s is None else f", {in_words(event.left_s)} left"
        answers = f"the teacher answered {event.num_answers} of {event.num_inputs} inputs"
        self._bar.update(
            self._row, total=event.num_inputs, completed=event.num_answers, updates=answers, score="", left=left
        )
        if not self._is_live and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._say(f"{answers}{left}")

    def _taught(self, event: Taught) -> None:
        self._say(f"the teacher answered {event.num_inputs} inputs")

    def _warned(self, event: Warned) -> None:
        self._say(f"warning: {event.message}")

    def _opening(self, event: OpeningStarted) -> None:
        prompts = "a written prompt" if event.num_prompts == 1 else f"{event.num_prompts} written prompts"
        self._say(f"asking {prompts}; all is done in {in_words(event.left_s)} at the latest")

    def _written(self, event: PromptWritten) -> None:
        self._say(
            f"starts from the written prompt {_shorten(event.text)} with the template {_shorten(event.template)}: "
            f"{event.metric} {event.value:.3f} on {event.num_rows} examples"
            + (f", best of {event.num_prompts}" if event.num_prompts > 1 else "")
        )

    def _planned(self, event: TuningPlanned) -> None:
        prompts = "1 prompt" if event.num_members == 1 else f"{event.num_members} prompts side by side"
        end = datetime.now() + timedelta(seconds=event.left_s)  # noqa: DTZ005  a person's own clock
        self._say(
            f"plan: {prompts}, about {event.num_steps} updates of {event.batch_size} examples "
            f"({event.update_s:.2g} s each for a prompt), done at {end:%H:%M:%S} or sooner, in {in_words(event.left_s)}"
        )

    def _started(self, event: TuningStarted) -> None:
        self._bar.update(self._row, total=event.num_steps)
        prompts = "1 prompt" if len(event.members) == 1 else f"{len(event.members)} prompts"
        self._say(
            f"{event.num_train} examples, {event.num_validation} to choose by, {prompts} "
            f"with {event.num_parameters} parameters in all, {event.num_steps} updates"
        )

    def _step(self, event: StepDone) -> None:
        left = "" if event.left_s is None else f"{in_words(event.left_s)} left"
        updates = f"update {event.step}/{event.num_steps}, loss {event.loss:.3f}"
        self._bar.update(
            self._row, total=event.num_steps, completed=event.step, updates=updates, score=self._score, left=left
        )
        if not self._is_live and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._say(f"{updates}{self._score}{', ' if left else ''}{left}")

    def _evaluated(self, event: Evaluated) -> None:
        if event.is_best:
            self._score = f", {event.metric} {event.value:.3f} on validation"
        if event.is_best and not self._is_live:
            self._say(f"update {event.step}: {event.metric} {event.value:.3f} on validation, the best so far")

    def _dropped(self, event: MembersDropped) -> None:
        if not self._is_live:
            why = "others do better" if event.reason == "halving" else event.reason
            self._say(f"update {event.step}: prompts {', '.join(map(str, event.members))} dropped: {why}")

    def _stopped(self, event: TuningStopped) -> None:
        reason = REASON_TO_WORDS.get(event.reason, event.reason)
        self._say(f"ended after {event.step} updates: {reason}; best after {event.best_step}")

    def _say(self, line: str) -> None:
        self._line_s = time.monotonic()
        if self._is_live:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line, err=True)


def _shorten(text: str) -> str:
    shown = repr(text.strip())
    return shown if len(shown) <= MAX_SHOWN_CHARS else f"{shown[: MAX_SHOWN_CHARS - 4]}...'"
