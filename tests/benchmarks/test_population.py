"""What is timed side by side is the same work as what is timed one by one."""

from __future__ import annotations

import pytest
import torch

from app.model.backbone import Backbone
from app.task_prompt import PromptKind
from benchmarks.models import TINY
from benchmarks.parts.population import NUM_PROMPTS, Pair, draw_batches, make_population, make_trainer, update


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_eight_prompts_in_one_batch_become_what_eight_updates_make_of_them(kind: PromptKind) -> None:
    # in float64: AdamW's first update is almost the gradient's sign, which rounding decides where it is almost 0
    backbone = Backbone.from_model(TINY.build_model().double(), TINY.build_tokenizer(), name=TINY.name)
    rows = next(draw_batches(backbone, 4))
    together = make_population(backbone, kind, range(NUM_PROMPTS))
    separate = [make_population(backbone, kind, [number]) for number in range(NUM_PROMPTS)]
    before = [member.rows.detach().clone() for member in together.members]
    update([make_trainer(backbone, together)], rows)
    update([make_trainer(backbone, population) for population in separate], rows)
    for start, ours, other in zip(before, together.members, separate, strict=True):
        (theirs,) = other.members
        torch.testing.assert_close(ours.rows, theirs.rows, rtol=1e-4, atol=1e-6)
        assert not torch.equal(ours.rows, start)


def test_the_ratio_compares_the_halves_of_a_round() -> None:
    """A round in which the machine was slow says as much as any other."""
    pair = Pair(PromptKind.KV, 4, {"together": [1.0, 10.0, 1.0], "separately": [2.0, 20.0, 2.0]})
    assert pair.ratio == 0.5
