"""What a tuning run reports while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TuningStarted:
    num_steps: int
    num_train: int
    num_validation: int
    num_parameters: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """Attributes: step: counts from 1. loss: mean over the rows of this update. elapsed_s: since the start."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Attributes: step: updates done. metric: "accuracy" or "loss". value: on validation. is_best: of all so far."""

    step: int
    metric: str
    value: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class TuningStopped:
    """Attributes: reason: "finished", "patience", "not finite" or "stopped"."""

    step: int
    reason: str
    best_step: int


TuneEvent = TuningStarted | StepDone | Evaluated | TuningStopped
OnEvent = Callable[[TuneEvent], None]


def ignore_event(event: TuneEvent) -> None:
    """For callers that do not watch."""
