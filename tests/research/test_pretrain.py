"""Claims about the training run: weights of answers, a further run's start, and what the streams give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from research.demo.pretrain import NUM_HELD_OUT_TOKENS, Recipe, TokenRows, build_model, export, mean_nats, read_weights

TINY = Recipe(
    hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=50, max_position=32
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(TINY)


def test_equal_weights_change_nothing_and_zero_weights_hide_a_token(model) -> None:
    rows = torch.randint(0, 50, (3, 9))
    plain = mean_nats(model, rows)
    assert torch.allclose(mean_nats(model, rows, torch.full((3, 8), 4.0)), plain, atol=1e-6)
    first = torch.zeros(3, 8)
    first[:, 0] = 1.0
    assert torch.allclose(mean_nats(model, rows, first), mean_nats(model, rows[:, :2]), atol=1e-5)


def test_an_export_gives_its_weights_back_rounded_to_bfloat16(model, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    export(model, tmp_path / "tokenizer", tmp_path / "export")
    further = build_model(TINY)
    further.load_state_dict(read_weights(tmp_path / "export"))
    for name, weight in model.state_dict().items():
        assert torch.equal(further.state_dict()[name], weight.to(torch.bfloat16).float())


def test_rows_carry_which_tokens_are_answers_and_neighbours_share_one(tmp_path: Path) -> None:
    tokens = np.arange(NUM_HELD_OUT_TOKENS + 100, dtype=np.uint16)
    np.save(tmp_path / "cues.npy", tokens)
    np.save(tmp_path / "cues_answers.npy", tokens % 5 == 0)
    stream = TokenRows(tmp_path, "cues")
    rows, is_answer = stream.take(3, 8)
    assert rows.shape == (3, 9)
    assert rows[0, -1] == rows[1, 0]
    assert torch.equal(is_answer, (rows % 5 == 0).long())
    assert stream.take(1, 8)[0][0, 0] == 24
    assert stream.held_out[0] == 100
