"""The result of a run as `/v1/tasks/{task}/run` and `softswap run --json` show it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.answers.generating.runs import MemberAnswer, RunResult
from app.answers.views.reply import Reply


class MemberObject(Reply):
    """What one member of an ensemble says by itself: its label with its probability, or its text."""

    model: str
    label: str | None = None
    probability: float | None = None
    text: str | None = None


class RunObject(Reply):
    """What the task says about one input: a label for a task with labels, a text for one that generates."""

    model: str = Field(description="The version that answered, such as `sentiment@3`; of an ensemble all members.")
    label: str | None = Field(None, description="The likeliest label.")
    probabilities: dict[str, float] | None = Field(None, description="Of every label, likeliest first; they sum to 1.")
    label_mass: float | None = Field(
        None, description="The model's whole belief in the labels before normalizing: a small one is a warning."
    )
    text: str | None = Field(None, description="The generated text, without blanks at its ends.")
    finish_reason: Literal["stop", "length"] | None = None
    members: list[MemberObject] | None = Field(None, description="Of an ensemble, in the order of its name.")


def run_object(result: RunResult) -> RunObject:
    """Dump it without the fields that are not set."""
    return RunObject(**run_fields(result))


def run_fields(result: RunResult) -> dict[str, Any]:
    """Those of RunObject that this result has."""
    fields = {
        "model": result.model_id,
        "label": result.label,
        "probabilities": result.probabilities,
        "label_mass": result.label_mass,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "members": [_member_object(each) for each in result.members] or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _member_object(answer: MemberAnswer) -> MemberObject:
    if answer.label is None:
        return MemberObject(model=answer.model_id, text=answer.text)
    return MemberObject(model=answer.model_id, label=answer.label, probability=answer.probability)
