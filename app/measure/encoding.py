"""Examples as token ids, cut to length, and batches of them, for the tuner and the evaluation alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.prompted_forward import PaddedBatch

NUM_BATCHES_SORTED = 16


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """`[BOS][text]` and `[target][EOS]` as ids; EOS only if the backbone has one.

    Attributes:
        num_lost: tokens of the input that were cut off.
        target: as it was given, which answers are compared with.
    """

    text_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    num_lost: int = 0
    target: str = field(default="", compare=False)

    @property
    def num_tokens(self) -> int:
        return len(self.text_ids) + len(self.target_ids)


def collate(
    rows: Sequence[EncodedExample], device: torch.device, prompt_index: Sequence[int] | None = None
) -> PaddedBatch:
    """Pads with id 0, which the attention mask hides. Args: prompt_index: of each row; None: all have the first."""
    max_len = max(row.num_tokens for row in rows)
    ids = [[*row.text_ids, *row.target_ids, *[0] * (max_len - row.num_tokens)] for row in rows]
    return PaddedBatch(
        torch.tensor(ids, device=device),
        torch.tensor([len(row.text_ids) for row in rows], device=device),
        torch.tensor([row.num_tokens for row in rows], device=device),
        torch.tensor(prompt_index or [0] * len(rows), device=device),
    )


def encode_examples(
    backbone: Backbone,
    template: Template,
    examples: Sequence[Example],
    *,
    max_input_tokens: int,
    max_target_tokens: int,
) -> list[EncodedExample]:
    """Inputs that are too long lose their end.

    Raises InvalidInput, with the example's place: a target that is too long, an empty input, or a token that the
    backbone does not embed.
    """
    target_to_ids = encode_targets(backbone, template, examples)
    rows = []
    for number, example in enumerate(examples, 1):
        place, target_ids = _place(example, number), target_to_ids[example.target]
        if len(target_ids) > max_target_tokens:
            raise InvalidInput(f"the target of {place} is longer than {max_target_tokens} tokens", param="target")
        text_ids, num_lost = template.fit_input(backbone.tokenizer, example.input, max_input_tokens)
        if not text_ids:
            raise InvalidInput(f"the input of {place} is empty", param="input")
        backbone.require_embedded(text_ids, f"the text of {place}", param="input")
        rows.append(EncodedExample(tuple(text_ids), target_ids, num_lost, example.target))
    return rows


def encode_targets(backbone: Backbone, template: Template, examples: Sequence[Example]) -> dict[str, tuple[int, ...]]:
    """Each target's ids with the end that is taught after it. Raises as `encode_examples`."""
    target_to_ids: dict[str, tuple[int, ...]] = {}
    for number, example in enumerate(examples, 1):
        if example.target not in target_to_ids:
            ids = (*template.encode_target(backbone.tokenizer, example.target), *backbone.taught_eos_ids)
            backbone.require_embedded(ids, f"the target of {_place(example, number)}", param="target")
            target_to_ids[example.target] = ids
    return target_to_ids


def has_special_tokens(backbone: Backbone, target_to_ids: Mapping[str, Sequence[int]]) -> bool:
    """Whether some target is written with a special token, which a text would leave out by default."""
    added = backbone.tokenizer.added_tokens_decoder.items()
    special = {token_id: token.content for token_id, token in added if token.special}
    return any(
        special[token_id] in target for target, ids in target_to_ids.items() for token_id in special.keys() & set(ids)
    )


def _place(example: Example, number: int) -> str:
    return example.place or f"example {number}"


def by_length(rows: Sequence[EncodedExample], batch_size: int) -> list[list[int]]:
    """Indexes of all rows in batches of nearly equal length, longest first: the order to measure in."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].num_tokens, i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def shuffled_batches(
    rows: Sequence[EncodedExample],
    batch_size: int,
    generator: torch.Generator,
    *,
    balance: bool = False,
) -> Iterator[list[int]]:
    """Endless epochs of batches in random order, each of rows with similar lengths, because padding costs time.

    Rows are shuffled, sorted by length within windows of NUM_BATCHES_SORTED batches, and the batches of an epoch are
    shuffled again. A last, smaller batch is kept.

    Args: balance: an epoch has no more rows of the most common target than of all others together, drawn at random.
    """
    window = batch_size * NUM_BATCHES_SORTED
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        order = _without_surplus(rows, order) if balance else order
        batches = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: rows[i].num_tokens)
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def _without_surplus(rows: Sequence[EncodedExample], order: list[int]) -> list[int]:
    """The order without its first rows of the most common target, by as many as these exceed all others, if any."""
    most_common, count = Counter(row.target_ids for row in rows).most_common(1)[0]
    num_others = len(rows) - count
    num_left_out = max(0, count - num_others) if num_others else 0
    left_out = set([i for i in order if rows[i].target_ids == most_common][:num_left_out])
    return [i for i in order if i not in left_out]
