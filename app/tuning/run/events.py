"""What a tuning run reports as it proceeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TeacherAnswered:
    """A teacher has answered some inputs. Attributes: left_s: until the result is there; None if there is no budget."""

    num_answers: int
    num_inputs: int
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher has answered all inputs of a distillation."""

    num_inputs: int


@dataclass(frozen=True, slots=True)
class OpeningStarted:
    """Written prompts are compared. Attributes: num_prompts: of them. left_s: seconds until the result is there."""

    num_prompts: int
    left_s: float


@dataclass(frozen=True, slots=True)
class PromptWritten:
    """The written prompt that did best is where tuning starts.

    Attributes: text, template: its. metric, value: of it, on `num_rows` validation examples. num_prompts: that were
    compared.
    """

    text: str
    template: str
    metric: str
    value: float
    num_rows: int
    num_prompts: int


@dataclass(frozen=True, slots=True)
class TuningPlanned:
    """What fits into the budget.

    Attributes:
        num_members: prompts that are tuned side by side at first.
        batch_size: rows of an update.
        num_steps: updates that are expected to fit.
        num_validation, num_final: rows of a measurement on the way, and of the result's.
        update_s: seconds that an update of one prompt takes.
        left_s: seconds until the result is there.
    """

    num_members: int
    batch_size: int
    num_steps: int
    num_validation: int
    num_final: int
    update_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class TuningStarted:
    """Attributes: num_parameters: of all members together. members: what each of them is, by number."""

    num_steps: int
    num_train: int
    num_validation: int
    num_parameters: int
    members: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StepDone:
    """Attributes: step: counts from 1. loss: of the leading member, mean over the rows of this update.
    learning_rate: that member's. elapsed_s: seconds spent on the device since the start.
    num_tokens: of the examples in this update, text and answer, counted for each member that learned from them.
    num_tokens_trained: the same in all updates so far. left_s: seconds until the end, as far as is known.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    elapsed_s: float
    num_tokens: int = 0
    num_tokens_trained: int = 0
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Attributes: step: updates done. metric: "accuracy" or "loss". value: of one member, on validation.
    is_best: of all members and all steps so far.
    """

    step: int
    metric: str
    value: float
    is_best: bool
    member: int = 0


@dataclass(frozen=True, slots=True)
class MembersDropped:
    """Attributes: members: numbers of those that are no longer trained. reason: "halving" or "not finite"."""

    step: int
    members: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class MicroBatchLowered:
    """Memory was short. Attributes: num_rows: of one forward from now on."""

    num_rows: int


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a person should know. Attributes: about: "cut" texts or "label_mass". message: with its remedy."""

    about: str
    message: str


@dataclass(frozen=True, slots=True)
class TuningStopped:
    """Attributes: reason: "finished", "budget", "patience", "not finite" or "stopped"."""

    step: int
    reason: str
    best_step: int


TuneEvent = (
    TeacherAnswered
    | Taught
    | OpeningStarted
    | PromptWritten
    | TuningPlanned
    | TuningStarted
    | StepDone
    | Evaluated
    | MembersDropped
    | MicroBatchLowered
    | Warned
    | TuningStopped
)
OnEvent = Callable[[TuneEvent], None]
