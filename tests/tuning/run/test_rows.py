"""Every row meets every prompt once, within the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.layout import Template
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.rows import Chunker, RunRows, fit_to_targets
from app.tuning.search import Search
from tests.support.models import COMMON, byte_tokenizer


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    num_prompts=st.integers(1, 5),
    max_rows=st.integers(1, 8),
    max_tokens=st.none() | st.integers(1, 100),
    num_extra=st.integers(0, 5),
)
def test_chunks_hold_every_pair_once_and_keep_their_bounds(
    lengths: list[int], num_prompts: int, max_rows: int, max_tokens: int | None, num_extra: int
) -> None:
    rows = [EncodedExample(tuple(range(length)), ()) for length in lengths]
    chunker = Chunker(max_rows=max_rows, num_extra_tokens=num_extra)
    chunker.max_tokens = max_tokens
    chunks = list(chunker.chunks(rows, num_prompts))
    assert sorted(place for chunk in chunks for place in chunk.places) == [
        (row, prompt) for row in range(len(rows)) for prompt in range(num_prompts)
    ]
    for chunk in chunks:
        assert [rows[i] for i, _ in chunk.places] == chunk.rows
        assert 1 <= len(chunk.rows) <= max_rows
        num_tokens = len(chunk.rows) * (max(row.num_tokens for row in chunk.rows) + num_extra)
        assert max_tokens is None or len(chunk.rows) == 1 or num_tokens <= max_tokens


def backbone_of(num_positions: int) -> Backbone:
    """Random weights; a byte of text is a token."""
    config = AutoConfig.for_model("llama", **COMMON | {"max_position_embeddings": num_positions})
    with torch.inference_mode(mode=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return Backbone.from_model(model, byte_tokenizer(), name=f"positions-{num_positions}")


def rows_of(num_positions: int, targets: Sequence[str], num_chars: int, **config: int) -> tuple[RunRows, TuningPlan]:
    """Rows of texts whose last letter says which target they have, after 20 virtual tokens."""
    texts = ["x" * (num_chars - 1) + "abc"[i % len(targets)] for i in range(30)]
    examples = tuple(Example(text, targets[i % len(targets)]) for i, text in enumerate(texts))
    labels = tuple(targets) if len(targets) < 3 else ()
    plan = TuningPlan(examples, examples, Template("{input}{target}"), labels, TuneConfig(**config), Search())
    backbone = backbone_of(num_positions)
    plan = fit_to_targets(backbone, plan)
    return RunRows.of(backbone, plan), plan


def test_labels_take_as_many_positions_as_the_longest_of_them() -> None:
    for num_positions in (64, 128, 256):
        fitting = num_positions - 20 - 3 - 1  # the prompt, a label of two with its end, and what begins the text
        rows, plan = rows_of(num_positions, ["no", "up"], fitting)
        assert plan.config.max_target_tokens == 3
        assert {len(row.text_ids) for row in rows.train} == {fitting + 1}
        assert rows.say_what_is_cut() is None
        rows, _ = rows_of(num_positions, ["no", "up"], fitting + 7)
        assert {len(row.text_ids) for row in rows.validation} <= {fitting, fitting + 1}
        said = rows.say_what_is_cut() or ""
        assert f"60 of 60 texts are longer than {fitting + 1} tokens and lose their end" in said


def test_written_answers_have_room_for_twice_the_longest_target_there_is() -> None:
    targets = ["no", "up", "nowhere"]
    rows, plan = rows_of(64, targets, 27)
    assert plan.config.max_target_tokens == 16
    assert rows.say_what_is_cut() is None
    assert rows_of(64, targets, 27, max_target_tokens=10)[1].config.max_target_tokens == 10
    with pytest.raises(InvalidInput, match="the target of example 3 is longer than 5 tokens"):
        rows_of(64, targets, 27, max_target_tokens=5)
    with pytest.raises(InvalidInput, match="leave no room in 32 positions"):
        rows_of(32, targets, 10)


def test_a_limit_that_is_asked_for_is_kept_and_said() -> None:
    rows, _ = rows_of(128, ["no", "up"], 60, max_input_tokens=12)
    assert {len(row.text_ids) for row in rows.train} <= {11, 12}
    num_lost = 61 - len(rows.train[0].text_ids)
    said = rows.say_what_is_cut() or ""
    assert f"longer than 12 tokens and lose their end, {num_lost} tokens in the median and up to {num_lost};" in said
