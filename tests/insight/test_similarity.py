"""Any two rows of a group are as similar as was asked, and prompts are compared row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BackboneMismatch, InvalidInput
from app.insight.similarity import compare_prompts, cosines, group_rows
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows


def test_rows_that_point_the_same_way_are_near_duplicates_whatever_their_length() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.1], [0.1, 3.0], [-1.0, 0.0]])
    assert group_rows(cosines(rows), 0.95) == ((0, 2), (1, 3))


def test_a_chain_is_not_a_group() -> None:
    """Neighbors are within 30 degrees, the ends are not: single linkage would take all three."""
    angles = torch.tensor([0.0, 30.0, 60.0]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert [len(group) for group in group_rows(cosines(rows), 0.85)] == [2]


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.zeros(3, 3), torch.eye(3)])
def test_there_may_be_no_groups(rows: torch.Tensor) -> None:
    assert group_rows(cosines(rows), 0.5) == ()


@given(st.integers(0, 2**16), st.integers(2, 12), st.floats(0.0, 0.99))
def test_every_two_rows_of_a_group_are_as_similar_as_was_asked(seed: int, num: int, least: float) -> None:
    similarity = cosines(torch.randn(num, 3, generator=torch.Generator().manual_seed(seed)))
    groups = group_rows(similarity, least)
    members = [row for group in groups for row in group]
    assert len(set(members)) == len(members)
    for group in groups:
        assert len(group) > 1
        assert min(float(similarity[i, j]) for i in group for j in group) >= least - 1e-4


def embeddings(rows: torch.Tensor) -> TaskPrompt:
    return TaskPrompt.from_embeddings(rows, tiny_backbone().fingerprint)


def test_each_row_is_compared_with_its_own_and_with_the_nearest() -> None:
    rows = random_rows(tiny_backbone(), 4)
    other = torch.stack([rows[0], rows[3] * 2, rows[2] + 1])
    found = compare_prompts(embeddings(rows), embeddings(other), "other")
    assert (found.num_virtual_tokens, found.is_same) == (3, False)
    assert [row.distance for row in found.rows[:1]] == pytest.approx([0.0], abs=1e-6)
    assert found.rows[2].distance == pytest.approx(32**0.5, rel=1e-4)
    assert (found.rows[3].distance, found.rows[3].cosine) == (None, None)
    assert (found.rows[3].nearest, found.rows[3].nearest_cosine) == (1, pytest.approx(1.0))


def test_a_prompt_is_the_same_as_itself() -> None:
    found = compare_prompts(random_prompt(tiny_backbone()), random_prompt(tiny_backbone()), "other")
    assert found.is_same
    assert all(row.distance == 0 and row.nearest == row.index for row in found.rows)


def test_prompts_of_other_kinds_and_backbones_are_not_compared() -> None:
    prompt = random_prompt(tiny_backbone())
    with pytest.raises(InvalidInput, match="kind embeddings cannot be compared with kv"):
        compare_prompts(prompt, random_prompt(tiny_backbone(), kind=PromptKind.KV), "other")
    with pytest.raises(BackboneMismatch):
        compare_prompts(prompt, random_prompt(tiny_backbone("qwen2")), "other")
