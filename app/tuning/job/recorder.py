"""Recorder: hears what a run reports, and writes it into the job's events in OpenAI's words."""

from __future__ import annotations

import math
import time
from typing import Any, Final

from app.jobs.event_log import NewEvent
from app.jobs.job import Job
from app.jobs.job_store import JobStore
from app.tuning.run.events import (
    Evaluated,
    MembersDropped,
    MicroBatchLowered,
    StepDone,
    Taught,
    TuneEvent,
    TuningStarted,
    TuningStopped,
)

MAX_STEP_EVENTS: Final = 2000
"""Of a longer run every second, third, ... update is recorded."""
FLUSH_EVERY_S: Final = 0.25
"""A transaction waits for the disk; one for each update would slow a fast run down."""


class Recorder:
    """`hear` is called inside slices and only takes note; `flush` writes, between slices.

    Attributes:
        stop_reason: why the run ended, once it has.
        train_loss: of the update before the best measurement so far; None before the first.
    """

    def __init__(self, jobs: JobStore, job: Job) -> None:
        self._jobs = jobs
        self._job = job
        self._step, self._num_steps, self._trained_tokens = job.step, job.num_steps or 0, job.trained_tokens
        self._pending: list[NewEvent] = []
        self._began_s = self._flushed_s = time.monotonic()
        self._first_step: int | None = None
        self._loss: float | None = None
        self.train_loss: float | None = None
        self.stop_reason: str | None = None

    def hear(self, event: TuneEvent) -> None:
        self._follow(event)
        happening = tell(event, self._step, self._num_steps)
        if happening is not None:
            self._pending.append(happening)

    def flush_if_due(self) -> None:
        if self._pending and time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Everything heard is on disk when this returns."""
        happenings, self._pending = self._pending, []
        self._jobs.record(
            self._job,
            happenings,
            step=self._step,
            num_steps=self._num_steps,
            trained_tokens=self._trained_tokens,
            estimated_finish=self._estimate_finish(),
            redone=self._redone,
        )
        self._flushed_s = time.monotonic()

    @property
    def _redone(self) -> range:
        """Updates of which this run has reported everything there is."""
        return range(0) if self._first_step is None else range(self._first_step, self._step)

    def _follow(self, event: TuneEvent) -> None:
        if isinstance(event, TuningStarted):
            self._num_steps = event.num_steps
        elif isinstance(event, StepDone):
            self._first_step = event.step if self._first_step is None else self._first_step
            self._jobs.count(num_updates=1, num_tokens=event.num_tokens)
            self._step, self._loss, self._trained_tokens = event.step, event.loss, event.num_tokens_trained
        elif isinstance(event, Evaluated) and event.is_best:
            self.train_loss = self._loss
        elif isinstance(event, TuningStopped):
            self.stop_reason = event.reason

    def _estimate_finish(self) -> int | None:
        """Seconds since 1970, by this run's own pace so far."""
        if self._first_step is None:
            return None
        pace_s = (time.monotonic() - self._began_s) / (self._step - self._first_step + 1)
        return int(time.time() + pace_s * (self._num_steps - self._step))


def tell(event: TuneEvent, step: int, num_steps: int) -> NewEvent | None:
    """Args: step, num_steps: where the run stands. Returns None for an update too many."""
    match event:
        case Taught() | TuningStarted():
            return _tell_start(event)
        case StepDone():
            return _tell_step(event)
        case Evaluated():
            return _tell_measurement(event, num_steps)
        case MembersDropped():
            names = ", ".join(map(str, event.members))
            who = f"Member {names} is" if len(event.members) == 1 else f"Members {names} are"
            level, why = ("info", "others do better") if event.reason == "halving" else ("warn", event.reason)
            return NewEvent("dropped", f"{who} tuned no more: {why}", level, event.step, event.members[0])
        case MicroBatchLowered():
            message = f"Memory is short: forwards have {event.num_rows} rows from now on"
            return NewEvent("micro_batch", message, "warn", step)
        case TuningStopped():
            message = f"Tuning ended after {event.step} updates ({event.reason}); best after {event.best_step}"
            return NewEvent("stopped", message, step=event.step)


def _tell_start(event: Taught | TuningStarted) -> NewEvent:
    if isinstance(event, Taught):
        return NewEvent("taught", f"The teacher has answered {event.num_inputs} inputs", step=0)
    message = (
        f"Tuning started: {event.num_steps} updates, {event.num_train} examples and {event.num_validation} for "
        f"validation, {event.num_parameters} parameters in {len(event.members)} members"
    )
    return NewEvent("started", message, step=0)


def _tell_step(event: StepDone) -> NewEvent | None:
    stride = math.ceil(event.num_steps / MAX_STEP_EVENTS)
    if event.step % stride and event.step not in (1, event.num_steps):
        return None
    data = {
        "step": event.step,
        "total_steps": event.num_steps,
        "train_loss": event.loss,
        "learning_rate": event.learning_rate,
    }
    message = f"Step {event.step}/{event.num_steps}: training loss={event.loss:.4f}"
    return NewEvent("step", message, step=event.step, data=data)


def _tell_measurement(event: Evaluated, num_steps: int) -> NewEvent:
    data: dict[str, Any] = {
        "step": event.step,
        "total_steps": num_steps,
        "member": event.member,
        f"valid_{event.metric}": event.value if math.isfinite(event.value) else None,
        "is_best": event.is_best,
    }
    is_best = ", best so far" if event.is_best else ""
    message = f"Step {event.step}/{num_steps}: validation {event.metric}={event.value:.4f} (member {event.member}"
    return NewEvent("evaluated", f"{message}{is_best})", step=event.step, member=event.member, data=data)
