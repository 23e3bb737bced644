"""`/v1/tasks/{task}/run` and `/v1/run`: a task used for what it was tuned for."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from app.answers.generating.runs import RunObject
from app.answers.targets import Combine
from app.answers.views.reply import Reply
from app.http.fields import ModelName, Sampling, Strict, Text, UsageObject

MAX_INPUTS: Final = 1000


CombineField = Annotated[
    Combine | None,
    Field(
        strict=False,
        description="How the members of an ensemble, such as `sentiment@1+2+3`, become one answer: by the average of "
        "their probabilities, or by a vote. Without it labels are averaged, and texts are voted on.",
    ),
]


class RunRequest(Sampling):
    """One input or several. The sampling fields are for tasks that generate; a task with labels refuses them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"input": "a gorgeous, witty film"}, {"inputs": ["dull and long", "I laughed throughout"]}],
            "oneOf": [{"required": ["input"]}, {"required": ["inputs"]}],
        }
    )

    input: Text | None = Field(None, description="What the task's template takes in.")
    inputs: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        None, description="Several, answered in one batch and in this order."
    )
    stream: bool | None = Field(
        None, description="Answer with server-sent events; for one input to a task that generates."
    )
    combine: CombineField = None

    @model_validator(mode="after")
    def _check_one(self) -> RunRequest:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("needs input or inputs, one of them")
        return self

    @property
    def texts(self) -> list[str]:
        return [self.input] if self.input is not None else list(self.inputs or ())


class RunItem(Strict):
    """One input to one task."""

    task: ModelName
    input: Text
    combine: CombineField = None


MixedRunRequest = Annotated[
    list[RunItem],
    Field(
        min_length=1,
        max_length=MAX_INPUTS,
        examples=[[{"task": "sentiment", "input": "a gorgeous film"}, {"task": "language", "input": "guten Morgen"}]],
    ),
]


class RunReply(RunObject):
    """The answer to one input."""

    usage: UsageObject


class RunsReply(Reply):
    """The answers to several inputs, in their order."""

    results: list[RunObject]
    usage: UsageObject


class RunChunk(Reply):
    """One event of a streamed run: a piece of text, or at the end the reason and the usage."""

    model: str
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: UsageObject | None = None
