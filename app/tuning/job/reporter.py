"""Reporter: puts the events of a run into a job's record, in OpenAI's words."""

from __future__ import annotations

import math
from typing import Any, Final

from app.jobs.attempt import ProgressLog
from app.jobs.event_log import NewEvent
from app.tuning.budget import in_words
from app.tuning.run.events import (
    Evaluated,
    MembersDropped,
    MicroBatchLowered,
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

MAX_STEP_EVENTS: Final = 2000
"""Of a longer run only every second, third, ... update is recorded."""


class Reporter:
    """Passes the events of one run to the job's progress.

    Attributes: train_loss: of the update before the best measurement so far; None before the first.
    """

    def __init__(self, progress: ProgressLog) -> None:
        self._progress = progress
        self._loss: float | None = None
        self.train_loss: float | None = None

    def report(self, event: TuneEvent) -> None:
        progress = self._progress
        if isinstance(event, TuningStarted):
            progress.num_steps = event.num_steps
        elif isinstance(event, TeacherAnswered | OpeningStarted | TuningPlanned):
            progress.left_s = event.left_s
        elif isinstance(event, StepDone):
            progress.num_steps, progress.left_s = event.num_steps, event.left_s
            progress.advance(event.step, num_tokens=event.num_tokens, trained_tokens=event.num_tokens_trained)
            self._loss = event.loss
        elif isinstance(event, Evaluated) and event.is_best:
            self.train_loss = self._loss
        described = describe_event(event, progress.step, progress.num_steps)
        if described is not None:
            progress.add(described)


def describe_event(event: TuneEvent, step: int, num_steps: int) -> NewEvent | None:
    """Args: step, num_steps: where the run stands. Returns None for an update that is not recorded."""
    told: NewEvent | None
    match event:
        case TeacherAnswered():
            told = None
        case Taught():
            told = NewEvent("taught", f"The teacher has answered {event.num_inputs} inputs", step=0)
        case TuningStarted():
            examples = f"{event.num_train} examples and {event.num_validation} for validation"
            learned = f"{event.num_parameters} parameters in {len(event.members)} members"
            told = NewEvent("started", f"Tuning started: {event.num_steps} updates, {examples}, {learned}", step=0)
        case OpeningStarted():
            message = f"Comparing {event.num_prompts} written prompts; done in {in_words(event.left_s)} at the latest"
            told = NewEvent("opening", message, step=0)
        case PromptWritten():
            message = (
                f"Starts from the best of {event.num_prompts} written prompts: "
                f"{event.metric}={event.value:.4f} on {event.num_rows} examples"
            )
            told = NewEvent("written", message, step=0)
        case TuningPlanned():
            message = (
                f"Plan: {event.num_members} prompts, about {event.num_steps} updates of {event.batch_size} examples, "
                f"{in_words(event.left_s)} in all"
            )
            told = NewEvent("planned", message, step=0)
        case StepDone():
            told = _describe_step(event)
        case Evaluated():
            told = _describe_measurement(event, num_steps)
        case MembersDropped():
            names = ", ".join(map(str, event.members))
            who = f"Member {names} is" if len(event.members) == 1 else f"Members {names} are"
            level, why = ("info", "others do better") if event.reason == "halving" else ("warn", event.reason)
            told = NewEvent("dropped", f"{who} no longer tuned: {why}", level, event.step, event.members[0])
        case MicroBatchLowered():
            message = f"Memory is short: forwards have {event.num_rows} rows from now on"
            told = NewEvent("micro_batch", message, "warn", step)
        case Warned():
            told = NewEvent(event.about, event.message, "warn", step)
        case TuningStopped():
            message = f"Tuning ended after {event.step} updates ({event.reason}); best after {event.best_step}"
            told = NewEvent("stopped", message, step=event.step)
    return told


def _describe_step(event: StepDone) -> NewEvent | None:
    step, num_steps = event.step, event.num_steps
    if step % math.ceil(num_steps / MAX_STEP_EVENTS) and step not in (1, num_steps):
        return None
    learned = {"train_loss": event.loss, "learning_rate": event.learning_rate}
    message = f"Step {step}/{num_steps}: training loss={event.loss:.4f}"
    return NewEvent("step", message, step=step, data={"step": step, "total_steps": num_steps, **learned})


def _describe_measurement(event: Evaluated, num_steps: int) -> NewEvent:
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
