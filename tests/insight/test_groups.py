"""Groups of rows: every two of a group are as similar as was asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.insight.similarity import cosines, group_rows


def test_rows_that_point_the_same_way_are_near_duplicates_whatever_their_length() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.1], [0.1, 3.0], [-1.0, 0.0]])
    assert group_rows(cosines(rows), 0.95) == ((0, 2), (1, 3))


def test_a_chain_is_not_a_group() -> None:
    """Neighbours are within 30 degrees, the ends are not: single linkage would take all three."""
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
