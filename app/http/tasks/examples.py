"""Examples of a request: in its body, or in a file uploaded before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.errors import InvalidInput
from app.http.dependencies import Serving
from app.http.fields import MAX_ID_CHARS, FieldName, Strict, Text
from app.measure.dataset import Example

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
    input_field: FieldName | None = Field(
        None, description="With `file`: the field that holds the input; found by names and contents without it."
    )
    target_field: FieldName | None = Field(None, description="With `file`: the field that holds the target.")

    @model_validator(mode="after")
    def _check_one(self) -> ExampleSource:
        if (self.examples is None) == (self.file is None):
            raise ValueError("needs either examples or file")
        if self.file is None and (self.input_field or self.target_field):
            raise ValueError("has input_field and target_field with file alone")
        return self


async def read_examples(source: ExampleSource, serving: Serving) -> Sequence[Example]:
    """Raises InvalidInput: a target is blank, there are too many examples, or it is not clear which fields of the file
    they are. NoSuchFile, TuningUnavailable.
    """
    if source.file is None:
        return _read_items(source.examples or ())
    load = partial(
        serving.require_tuning().files.load,
        source.file,
        param="file",
        input_field=source.input_field,
        target_field=source.target_field,
    )
    dataset = await asyncio.to_thread(load)
    if len(dataset.examples) > MAX_EXAMPLES:
        raise InvalidInput(
            f"the file has {len(dataset.examples)} examples, and a request takes {MAX_EXAMPLES}", param="file"
        )
    return dataset.examples


def _read_items(items: Sequence[ExampleItem]) -> list[Example]:
    for index, item in enumerate(items):
        if not item.target.strip():
            raise InvalidInput("a target must not be blank", param=f"examples.{index}.target")
    return [Example(item.input, item.target.strip()) for item in items]
