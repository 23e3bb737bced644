"""Two prompts beside each other, and a prompt beside variants of itself."""

from __future__ import annotations

import pytest
import torch

from app.errors import BackboneMismatch, InvalidInput
from app.insight.similarity import compare_prompts
from app.insight.variants import made_of_tokens, without_token
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows


def embeddings(rows: torch.Tensor) -> TaskPrompt:
    return TaskPrompt.from_embeddings(rows, tiny_backbone().fingerprint)


def test_each_row_is_compared_with_its_own_and_with_the_nearest() -> None:
    rows = random_rows(tiny_backbone(), 4)
    other = torch.stack([rows[0], rows[3] * 2, rows[2] + 1])
    found = compare_prompts(embeddings(rows), embeddings(other))
    assert (found.num_virtual_tokens, found.is_same) == (3, False)
    assert [row.distance for row in found.rows[:1]] == pytest.approx([0.0], abs=1e-6)
    assert found.rows[2].distance == pytest.approx(32**0.5, rel=1e-4)
    assert (found.rows[3].distance, found.rows[3].cosine) == (None, None)
    assert (found.rows[3].nearest, found.rows[3].nearest_cosine) == (1, pytest.approx(1.0))


def test_a_prompt_is_the_same_as_itself() -> None:
    found = compare_prompts(random_prompt(tiny_backbone()), random_prompt(tiny_backbone()))
    assert found.is_same
    assert all(row.distance == 0 and row.nearest == row.index for row in found.rows)


def test_prompts_of_other_kinds_and_backbones_are_not_compared() -> None:
    prompt = random_prompt(tiny_backbone())
    with pytest.raises(InvalidInput, match="kind embeddings cannot be compared with kv"):
        compare_prompts(prompt, random_prompt(tiny_backbone(), kind=PromptKind.KV))
    with pytest.raises(BackboneMismatch):
        compare_prompts(prompt, random_prompt(tiny_backbone("qwen2")))


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_a_virtual_token_is_left_out(kind: PromptKind) -> None:
    prompt = random_prompt(tiny_backbone(), 3, kind=kind)
    for index, kept in enumerate([[1, 2], [0, 2], [0, 1]]):
        shorter = without_token(prompt, index)
        assert shorter is not None
        assert shorter.kind is kind
        assert torch.equal(shorter.rows, prompt.rows[kept])
    assert without_token(random_prompt(tiny_backbone(), 1, kind=kind), 0) is None


def test_a_prompt_is_made_of_tokens() -> None:
    backbone = tiny_backbone()
    prompt = made_of_tokens(backbone, [70, 71, 70])
    assert torch.equal(prompt.rows, backbone.embed(torch.tensor([70, 71, 70])))
