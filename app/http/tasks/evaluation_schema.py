"""`/v1/tasks/{task}/evaluate`: how well a version does on examples whose answers are known."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.http.fields import MAX_ID_CHARS, Strict, Text
from app.http.tasks.runs_schema import CombineField

MAX_EXAMPLES_BODY_BYTES: Final = 4 * 2**20


class ExampleItem(Strict):
    """What the template's `{input}` stands for, and the answer expected in place of its `{target}`."""

    input: Text
    target: Annotated[Text, Field(min_length=1)]


class ExampleSource(Strict):
    """Examples in the request, or uploaded before."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["examples"]}, {"required": ["file"]}],
            "examples": [
                {
                    "examples": [
                        {"input": "a gorgeous, witty film", "target": "positive"},
                        {"input": "dull and long", "target": "negative"},
                    ]
                }
            ],
        }
    )

    examples: Annotated[list[ExampleItem], Field(min_length=1, max_length=MAX_EXAMPLES)] | None = None
    file: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] | None = Field(
        None, description="Id of an upload (`/v1/files`) with the examples."
    )

    @model_validator(mode="after")
    def _check_one(self) -> ExampleSource:
        if (self.examples is None) == (self.file is None):
            raise ValueError("needs either examples or file")
        return self


class EvaluateRequest(ExampleSource):
    """Examples that the task was not tuned on."""

    record: bool | None = Field(None, description="Keep the figures with the version, at most 256 sets of them.")
    data_name: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="A name for the examples, with `record`; without it that of the file."
    )
    combine: CombineField = None
    with_predictions: bool | None = Field(None, description="Answer with the prediction of each example, in order.")
