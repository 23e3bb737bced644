"""The result of a run as `/v1/tasks/{task}/run` and `softswap run --json` show it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.answers.generating.runs import RunResult
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
    members = [MemberObject(**MemberObject.given_in(member)) for member in result.members]
    return RunObject.given_in(result) | ({"members": members} if members else {})
