from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from app.model import packed_weights_choice
from app.model.packed_weights import NUM_BUCKETS, PackedGroup
from app.model.packed_weights_choice import choose_packed_weights
from tests.model.packed import needs_onednn


class Model(nn.Module):
    """Two blocks of two narrow layers that share an input and one that does not, and a wide layer."""

    def __init__(self, *, is_flattening: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(1, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(8, width, bias=False) for width in (8, 8, 8)) for _ in range(2)
        )
        self.wide = nn.Linear(8, 32, bias=False)
        self.is_flattening = is_flattening

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        rows = self.embed(input_ids)
        for left, right, down in self.blocks:
            product = left(rows)
            if self.is_flattening:
                product = product.view(-1).view(rows.shape)
            rows = rows + down(product * right(rows))
        return SimpleNamespace(logits=self.wide(rows))


def pretend(monkeypatch: pytest.MonkeyPatch, faster: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Let these products, of a group's output features and a number of rows, be faster; returns those asked for."""
    asked: list[tuple[int, int]] = []

    def time_products(groups: list[PackedGroup], inputs: torch.Tensor) -> tuple[float, float]:
        asked.append((sum(layer.out_features for layer in groups[0].layers), inputs.shape[1]))
        return (2e-3, 1e-3) if asked[-1] in faster else (1e-3, 2e-3)

    monkeypatch.setattr(packed_weights_choice, "_time", time_products)
    return asked


ROWS = [2**i for i in range(NUM_BUCKETS)]
ALL = {(width, num_rows) for width in (8, 16, 32) for num_rows in ROWS}


@needs_onednn
def test_shapes_and_numbers_of_rows_are_decided_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {(16, 1), (16, 64)})
    chosen, reason = choose_packed_weights(Model())
    assert asked == [(width, num_rows) for width in (16, 8, 32) for num_rows in ROWS]
    assert [[layer.out_features for layer in group.layers] for group in chosen.groups] == [[8, 8], [8, 8]]
    assert all(group.is_faster == tuple(i in {0, 6} for i in range(NUM_BUCKETS)) for group in chosen.groups)
    assert chosen.num_bytes == 4 * 8 * 8 * 4
    assert reason.startswith("4 of 7 layers in 2 products by oneDNN")


@needs_onednn
def test_a_model_that_cannot_take_views_gets_each_product_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ALL)
    assert choose_packed_weights(Model())[1].startswith("7 of 7 layers in 5 products")
    assert choose_packed_weights(Model(is_flattening=True))[1].startswith("7 of 7 layers in 7 products")


@needs_onednn
def test_nothing_is_kept_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, set())
    chosen, reason = choose_packed_weights(Model())
    assert chosen.groups == ()
    assert reason.startswith("none: plain ones are as fast")


@needs_onednn
def test_a_product_that_comes_out_differently_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ALL)
    right = PackedGroup.multiply

    def wrong_for_four(self: PackedGroup, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(product * (1.01 if inputs.shape[1] == 4 else 1) for product in right(self, inputs))

    monkeypatch.setattr(PackedGroup, "multiply", wrong_for_four)
    chosen, _ = choose_packed_weights(Model())
    assert {tuple(group.is_faster) for group in chosen.groups} == {tuple(i != 2 for i in range(NUM_BUCKETS))}


@needs_onednn
def test_rows_beyond_a_slow_product_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, ALL)
    monkeypatch.setattr(packed_weights_choice, "SLOW_CALL_S", 1e-4)
    chosen, _ = choose_packed_weights(Model())
    assert asked == [(16, 1), (8, 1), (32, 1)]
    assert {tuple(group.is_faster) for group in chosen.groups} == {(True,) * NUM_BUCKETS}


@needs_onednn
def test_a_copy_that_takes_too_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights_choice, "_memory_bytes", lambda: 4 * 1000)
    assert choose_packed_weights(Model())[1].startswith("none: a second copy")


@needs_onednn
def test_what_is_really_measured_is_a_choice_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights_choice, "MEASUREMENT_S", 1e-4)
    chosen, reason = choose_packed_weights(Model())
    assert "measured in" in reason
    assert all(len(group.is_faster) == NUM_BUCKETS and any(group.is_faster) for group in chosen.groups)


@needs_onednn
def test_a_failure_of_onednn_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: PackedGroup, inputs: torch.Tensor) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(PackedGroup, "multiply", fail)
    chosen, reason = choose_packed_weights(Model())
    assert chosen.groups == ()
    assert reason == "none: oneDNN failed (could not create a primitive)"


@needs_onednn
def test_layers_of_several_dtypes_are_measured_apart() -> None:
    model = Model()
    model.other = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    assert "measured in" in choose_packed_weights(model)[1]


def test_without_onednn_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    chosen, reason = choose_packed_weights(Model())
    assert chosen.groups == ()
    assert reason.startswith("none: oneDNN cannot pack")
