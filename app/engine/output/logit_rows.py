"""Which rows of logits a step is asked for, and why."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from app.engine.scheduler import Item
from app.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A row of logits and why it was computed: it follows text token `index` of `sequence`.

    Attributes:
        is_choice: the next token of the sequence is chosen from it.
    """

    sequence: Sequence
    index: int
    is_choice: bool


def logit_rows(items: Items[Item]) -> tuple[list[LogitRow], list[int]]:
    """Which rows of logits are wanted, and their places in the packed batch."""
    rows, places, first = [], [], 0
    for item in items:
        if isinstance(item.segment, Sequence):
            start = item.start - item.segment.num_virtual_tokens
            for row in _wanted(item.segment, start, start + item.num_tokens):
                rows.append(row)
                places.append(first + row.index - start)
        first += item.num_tokens
    return rows, places


def _wanted(sequence: Sequence, start: int, end: int) -> list[LogitRow]:
    """Text tokens from `start` to before `end` after which logits are wanted."""
    if sequence.score_targets is not None:
        return [LogitRow(sequence, index, False) for index in range(start, end) if index in sequence.score_targets]
    wanted: list[LogitRow] = []
    if sequence.params.prompt_logprobs is not None:
        first = max(start, sequence.num_reported_logprobs)
        reported = range(first, min(end, sequence.num_prompt_tokens - 1))
        wanted += [LogitRow(sequence, index, False) for index in reported]
    if not sequence.has_all_tokens:
        last = len(sequence.token_ids) + sequence.num_pending - 1  # tokens of a speculation follow it
        wanted += [LogitRow(sequence, index, True) for index in range(max(start, last), end)]
    return wanted
