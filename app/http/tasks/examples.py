"""read_examples: the examples of a request, its own or those of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.errors import InvalidInput
from app.measure.dataset import Example

if TYPE_CHECKING:
    from app.http.dependencies import Serving
    from app.http.tasks.evaluation_schema import ExampleItem, ExampleSource


async def read_examples(source: ExampleSource, serving: Serving) -> Sequence[Example]:
    """Raises InvalidInput: a target is blank, or there are too many examples. NoSuchFile, TuningUnavailable."""
    if source.file is None:
        return _read_items(source.examples or ())
    dataset = await asyncio.to_thread(serving.require_tuning().files.load, source.file, param="file")
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
