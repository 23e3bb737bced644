"""The view of a prompt says what lies near its rows."""

from __future__ import annotations

import pytest
import torch

from app.errors import InvalidInput
from app.insight.report import view_prompt
from app.insight.similarity import find_neighbors
from app.task_prompt import TaskPrompt
from tests.support.models import tiny_backbone


def prompt_near(token_ids: list[int], scale: float = 1.0) -> TaskPrompt:
    backbone = tiny_backbone()
    return TaskPrompt.from_embeddings(scale * backbone.embed(torch.tensor(token_ids)), backbone.fingerprint)


def test_a_row_that_is_a_token_has_it_as_its_nearest() -> None:
    token_ids = tiny_backbone().tokenizer("abz", add_special_tokens=False)["input_ids"]
    view = view_prompt(tiny_backbone(), prompt_near(token_ids))
    for row, token_id, text in zip(view.virtual_tokens, token_ids, "abz", strict=True):
        assert row.by_cosine[0].token_id == row.by_distance[0].token_id == token_id
        assert row.by_cosine[0].token == text
        assert row.by_cosine[0].cosine == pytest.approx(1.0)
        assert row.by_distance[0].distance == pytest.approx(0.0, abs=1e-5)


def test_cosine_and_distance_disagree_if_a_row_is_long() -> None:
    (row,) = view_prompt(tiny_backbone(), prompt_near([70], scale=100.0)).virtual_tokens
    assert row.by_cosine[0].token_id == 70
    assert row.norm_percentile == 100.0
    assert row.by_distance[0].distance > 1.0
    distances = [near.distance for near in row.by_distance]
    assert distances == sorted(distances)


@pytest.mark.parametrize("chunk_size", [1, 100, 259, 10_000])
def test_chunks_change_nothing(chunk_size: int) -> None:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    by_cosine, by_distance = find_neighbors(tiny_backbone(), rows, 7, chunk_size=chunk_size)
    vocabulary = tiny_backbone().embed(torch.arange(259))
    expected = torch.cdist(rows, vocabulary).topk(7, dim=1, largest=False).indices.tolist()
    assert [[near.token_id for near in row] for row in by_distance] == expected
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], vocabulary[None], dim=2)
    assert [[near.token_id for near in row] for row in by_cosine] == cosine.topk(7).indices.tolist()


def test_drift_is_measured_from_the_initial_rows() -> None:
    prompt = prompt_near([70, 71])
    assert prompt.rows is not None
    view = view_prompt(tiny_backbone(), prompt, initial=2 * prompt.rows)
    for row in view.virtual_tokens:
        assert row.drift == pytest.approx(row.norm, rel=1e-5)
        assert row.drift_cosine == pytest.approx(1.0)
    assert view_prompt(tiny_backbone(), prompt).virtual_tokens[0].drift is None


def test_norms_are_compared_with_the_vocabularys() -> None:
    view = view_prompt(tiny_backbone(), prompt_near([70]))
    norms = tiny_backbone().embed(torch.arange(259)).norm(dim=1)
    assert view.vocabulary_norms[50] == pytest.approx(float(norms.median()), rel=1e-5)
    assert list(view.vocabulary_norms.values()) == sorted(view.vocabulary_norms.values())


@pytest.mark.parametrize("num_nearest", [0, 101])
def test_a_number_of_neighbors_out_of_range_is_refused(num_nearest: int) -> None:
    with pytest.raises(InvalidInput, match="num_nearest"):
        view_prompt(tiny_backbone(), prompt_near([70]), num_nearest=num_nearest)


def test_a_written_prompt_is_refused() -> None:
    backbone = tiny_backbone()
    with pytest.raises(InvalidInput, match="hand-written"):
        view_prompt(backbone, TaskPrompt.from_text("abc", [70, 71], backbone.fingerprint))


def test_an_initial_value_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidInput, match="initial"):
        view_prompt(tiny_backbone(), prompt_near([70]), initial=torch.zeros(2, 32))
