"""Examples become ids by the engine's layout; batches keep lengths together."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import (
    EncodedExample,
    by_length,
    collate,
    encode_examples,
    shuffled_batches,
)
from app.model.layout import Template
from tests.support.models import tiny_backbone

TEMPLATE = Template("Text: {input}\nA: {target}")


def row(num_tokens: int) -> EncodedExample:
    return EncodedExample((5,) * num_tokens, ())


def test_text_target_and_end_of_sequence_are_the_engines_ids() -> None:
    backbone = tiny_backbone()
    (got,) = encode_examples(backbone, TEMPLATE, [Example("hi", "no")], max_input_tokens=99, max_target_tokens=9)
    assert got.text_ids == tuple(TEMPLATE.encode_input(backbone.tokenizer, "hi"))
    assert got.target_ids == (*TEMPLATE.encode_target(backbone.tokenizer, "no"), backbone.tokenizer.eos_token_id)
    assert backbone.tokenizer.decode(got.text_ids + got.target_ids) == "<s>Text: hi\nA: no</s>"


@pytest.mark.parametrize("text", ["x" * 200, "é" * 120, "short"])
@pytest.mark.parametrize("limit", [12, 40, 300])
def test_a_long_input_loses_its_end_and_keeps_what_is_asked(text: str, limit: int) -> None:
    backbone = tiny_backbone()
    token_ids = TEMPLATE.encode_within(backbone.tokenizer, text, limit)
    assert len(token_ids) <= limit
    written = backbone.tokenizer.decode(token_ids)
    assert written.startswith("<s>Text: ")
    assert written.endswith("\nA:")
    assert text.startswith(written.removeprefix("<s>Text: ").removesuffix("\nA:"))


def test_a_template_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="template alone"):
        TEMPLATE.encode_within(tiny_backbone().tokenizer, "abc", 5)


def test_a_target_too_long_is_refused_with_its_number() -> None:
    examples = [Example("a", "b"), Example("a", "b" * 50)]
    with pytest.raises(InvalidInput, match="target of example 2"):
        encode_examples(tiny_backbone(), TEMPLATE, examples, max_input_tokens=99, max_target_tokens=9)


def test_padding_is_on_the_right_and_never_a_target() -> None:
    batch = collate([EncodedExample((5, 6), (7,)), EncodedExample((8,), (9, 9, 9))], torch.device("cpu"))
    assert batch.token_ids.tolist() == [[5, 6, 7, 0], [8, 9, 9, 9]]
    assert batch.is_target.tolist() == [[False, False, True, False], [False, True, True, True]]


def test_batches_by_length_hold_every_row_once() -> None:
    rows = [row(n) for n in (3, 9, 1, 9, 4)]
    assert by_length(rows, 2) == [[1, 3], [4, 0], [2]]


def test_each_epoch_holds_every_row_once_in_another_order() -> None:
    rows = [row(1 + i % 17) for i in range(100)]
    batches = list(islice(shuffled_batches(rows, 8, torch.Generator().manual_seed(0)), 26))
    first, second = list(chain(*batches[:13])), list(chain(*batches[13:]))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    again = list(islice(shuffled_batches(rows, 8, torch.Generator().manual_seed(0)), 26))
    assert again == batches


def test_rows_of_a_batch_have_similar_lengths() -> None:
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [row(n) for n in lengths]
    batches = islice(shuffled_batches(rows, 16, torch.Generator().manual_seed(0)), 32)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)


def test_a_balanced_epoch_has_no_more_of_the_commonest_target_than_of_all_others() -> None:
    rows = [EncodedExample((i,), (9,) if i % 4 else (i,)) for i in range(40)]
    batches = shuffled_batches(rows, 5, torch.Generator().manual_seed(0), balance=True)
    epochs = [[i for batch in islice(batches, 4) for i in batch] for _ in range(3)]
    for epoch in epochs:
        assert sorted(i for i in epoch if i % 4 == 0) == list(range(0, 40, 4))
        assert len({i for i in epoch if i % 4}) == 10
    assert len({i for epoch in epochs for i in epoch}) > 20, "each epoch leaves out others"


def test_examples_of_one_target_are_all_there_is() -> None:
    rows = [EncodedExample((i,), (9,)) for i in range(4)]
    assert sorted(next(shuffled_batches(rows, 4, torch.Generator().manual_seed(0), balance=True))) == [0, 1, 2, 3]
