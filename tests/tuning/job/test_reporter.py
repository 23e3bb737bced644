"""What a run reports, in OpenAI's words."""

from __future__ import annotations

import pytest

from app.tuning.job.reporter import MAX_STEP_EVENTS, describe_event
from app.tuning.run.events import (
    Evaluated,
    MembersDropped,
    MicroBatchLowered,
    OpeningStarted,
    PromptWritten,
    StepDone,
    TuneEvent,
    TuningPlanned,
    TuningStarted,
    TuningStopped,
)


@pytest.mark.parametrize(
    ("event", "message", "data"),
    [
        (OpeningStarted(3, 600.0), "Comparing 3 written prompts; done in 10m at the latest", None),
        (PromptWritten("Say.", "{input} {target}", "loss", 1.25, 16, 3), "Starts from the best of 3 written", None),
        (TuningPlanned(2, 16, 90, 100, 200, 3.1, 540.0), "Plan: 2 prompts, about 90 updates of 16 examples, 9m", None),
        (TuningStarted(9, 80, 20, 640, ({}, {})), "Tuning started: 9 updates", None),
        (
            StepDone(2, 9, 0.5, 0.03, 1.0),
            "Step 2/9: training loss=0.5000",
            {"step": 2, "total_steps": 9, "train_loss": 0.5, "learning_rate": 0.03},
        ),
        (
            Evaluated(2, "accuracy", 0.75, True, 1),
            "Step 2/9: validation accuracy=0.7500 (member 1, best so far)",
            {"step": 2, "total_steps": 9, "member": 1, "valid_accuracy": 0.75, "is_best": True},
        ),
        (
            Evaluated(2, "loss", float("nan"), False, 0),
            "Step 2/9: validation loss=nan (member 0)",
            {"step": 2, "total_steps": 9, "member": 0, "valid_loss": None, "is_best": False},
        ),
        (MembersDropped(4, (1, 3), "halving"), "Members 1, 3 are no longer tuned: others do better", None),
        (MembersDropped(4, (1,), "not finite"), "Member 1 is no longer tuned: not finite", None),
        (MicroBatchLowered(4), "Memory is short: forwards have 4 rows", None),
        (TuningStopped(9, "finished", 7), "Tuning ended after 9 updates (finished); best after 7", None),
    ],
)
def test_every_event_is_told(event: TuneEvent, message: str, data: dict | None) -> None:
    told = describe_event(event, 2, 9)
    assert told is not None
    assert told.message.startswith(message)
    assert told.data == data
    assert told.step is not None


def test_a_long_run_is_thinned_and_keeps_its_ends() -> None:
    num_steps = 10 * MAX_STEP_EVENTS + 1
    told = [
        describe_event(StepDone(step, num_steps, 0.5, 0.03, 1.0), step, num_steps) for step in range(1, num_steps + 1)
    ]
    steps = [each.step for each in told if each is not None]
    assert len(steps) <= MAX_STEP_EVENTS + 2
    assert (steps[0], steps[-1]) == (1, num_steps)
