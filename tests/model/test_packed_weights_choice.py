from __future__ import annotations

import pytest
import torch
from torch import nn

from app.model import packed_weights_choice
from app.model.packed_weights import NUM_BUCKETS, PackedLinear, PackedWeights
from app.model.packed_weights_choice import choose_packed_weights
from tests.model.test_packed_weights import needs_onednn


class TwoShapes(nn.Module):
    """Three layers of one shape, one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.wide = nn.Linear(8, 32, bias=False)


def pretend(monkeypatch: pytest.MonkeyPatch, is_packed_faster: dict[tuple[int, int], bool]) -> list[tuple[int, int]]:
    """Let a product of (out_features, num_rows) take these times; returns what was asked, in order."""
    asked: list[tuple[int, int]] = []

    def time_products(layers: list[PackedLinear], inputs: torch.Tensor) -> tuple[float, float]:
        asked.append((layers[0].linear.out_features, inputs.shape[1]))
        return (2e-3, 1e-3) if is_packed_faster.get(asked[-1]) else (1e-3, 2e-3)

    monkeypatch.setattr(packed_weights_choice, "_time", time_products)
    return asked


@needs_onednn
def test_shapes_and_numbers_of_rows_are_decided_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {(8, 1): True, (8, 64): True})
    chosen, reason = choose_packed_weights(TwoShapes())
    assert asked == [(width, 2**i) for width in (8, 32) for i in range(NUM_BUCKETS)]
    assert [layer.linear.out_features for layer in chosen.layers] == [8, 8, 8]
    assert all(layer.is_faster == tuple(i in {0, 6} for i in range(NUM_BUCKETS)) for layer in chosen.layers)
    assert chosen.num_bytes == 3 * 8 * 8 * 4
    assert reason.startswith("3 of 4 layers by oneDNN")


@needs_onednn
def test_nothing_is_kept_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {})
    chosen, reason = choose_packed_weights(TwoShapes())
    assert chosen.layers == ()
    assert reason.startswith("none: plain ones are as fast")


@needs_onednn
def test_a_product_that_comes_out_differently_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {(width, 2**i): True for width in (8, 32) for i in range(NUM_BUCKETS)})
    right = PackedLinear.multiply
    monkeypatch.setattr(
        PackedLinear, "multiply", lambda self, inputs: right(self, inputs) * (1.01 if inputs.shape[1] == 4 else 1)
    )
    chosen, _ = choose_packed_weights(TwoShapes())
    assert {layer.is_faster for layer in chosen.layers} == {tuple(i != 2 for i in range(NUM_BUCKETS))}


@needs_onednn
def test_rows_beyond_a_slow_product_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {(8, 1): True, (32, 1): True})
    monkeypatch.setattr(packed_weights_choice, "SLOW_CALL_S", 1e-4)
    chosen, _ = choose_packed_weights(TwoShapes())
    assert asked == [(8, 1), (32, 1)]
    assert {layer.is_faster for layer in chosen.layers} == {(True,) * NUM_BUCKETS}


@needs_onednn
def test_a_copy_that_takes_too_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights_choice, "_memory_bytes", lambda: 4 * 1000)
    assert choose_packed_weights(TwoShapes())[1].startswith("none: a second copy")


@needs_onednn
def test_what_is_really_measured_is_a_choice_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights_choice, "MEASUREMENT_S", 1e-4)
    chosen, reason = choose_packed_weights(TwoShapes())
    assert isinstance(chosen, PackedWeights)
    assert "measured in" in reason
    assert all(len(layer.is_faster) == NUM_BUCKETS and any(layer.is_faster) for layer in chosen.layers)


def test_without_onednn_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    chosen, reason = choose_packed_weights(TwoShapes())
    assert chosen.layers == ()
    assert reason.startswith("none: oneDNN cannot pack")
