"""A last layer computed where it is asked gives the logits, and the gradients, of one computed everywhere."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache

from app.model.backbone import Backbone
from app.model.last_layer import LastLayer
from tests.support.families import build_family
from tests.support.models import ARCHITECTURE_TO_CONFIG, byte_tokenizer, tiny_backbone

COLUMNS = torch.tensor([[29, 4, 11], [20, 0, 7]])
NUM_TOKENS, NUM_REAL, NUM_PAST = 30, 21, 6


@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_logits_and_gradients_are_those_of_the_whole_layer(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    layer = backbone.last_layer
    assert layer is not None
    whole, gradient_of_whole = logits_and_gradient(backbone)
    found, gradient = logits_and_gradient(backbone, layer)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, gradient_of_whole, atol=1e-4, rtol=1e-3)
    assert torch.equal(logits_and_gradient(backbone)[0], whole), "the layer is as it was"


def test_a_layer_that_looks_at_positions_is_asked_about_far_ones() -> None:
    """Its queries grow from position 32 on."""
    model = build_family("ministral3", "scaled")
    if model is None:
        pytest.skip("this transformers has no such model")
    backbone = Backbone.from_model(model, byte_tokenizer(), name="scaled")
    assert backbone.last_layer is not None
    whole, found = logits_and_gradient(backbone)[0], logits_and_gradient(backbone, backbone.last_layer)[0]
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-5)


def logits_and_gradient(backbone: Backbone, layer: LastLayer | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two texts after a cache, the second of which ends earlier; the gradient is that of the first tokens."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, NUM_PAST + NUM_TOKENS, backbone.hidden_size, generator=generator).requires_grad_()
    cache = DynamicCache()
    backbone.forward(cache, inputs_embeds=embeds[:, :NUM_PAST], logits_to_keep=1)
    is_real = torch.ones(2, NUM_PAST + NUM_TOKENS, dtype=torch.int64)
    is_real[1, NUM_PAST + NUM_REAL :] = 0
    with layer.only_at(COLUMNS) if layer else nullcontext():
        logits = backbone.forward(
            cache,
            inputs_embeds=embeds[:, NUM_PAST:],
            attention_mask=is_real,
            position_ids=torch.arange(NUM_PAST, NUM_PAST + NUM_TOKENS).expand(2, -1),
            logits_to_keep=COLUMNS,
        ).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), embeds)
    return logits.detach(), gradient


def test_only_asked_tokens_reach_the_feed_forward_layer() -> None:
    backbone = tiny_backbone()
    layer = backbone.last_layer
    assert layer is not None
    seen: list[torch.Size] = []
    handle = layer.layer.get_submodule("mlp").register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    try:
        logits_and_gradient(backbone, layer)
    finally:
        handle.remove()
    assert seen == [(2, NUM_PAST, backbone.hidden_size), (2, 3, backbone.hidden_size)]


def test_a_layer_that_others_have_changed_is_left_alone() -> None:
    backbone = tiny_backbone()
    assert backbone.last_layer is not None
    layer = backbone.last_layer.layer
    layer.__dict__["forward"] = layer.forward
    try:
        assert LastLayer.find(backbone.model, backbone.kv_shape.num_layers) is None
    finally:
        del layer.__dict__["forward"]


def test_a_model_whose_layer_says_something_else_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    monkeypatch.setattr("app.model.last_layer.pick", lambda values, columns: values[:, : columns.shape[1]])
    assert LastLayer.find(backbone.model, backbone.kv_shape.num_layers) is None
