"""What layers see is what their masks say, as far as positions reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_causal_mask
from transformers.models.llama import modeling_llama

from app.errors import UnsupportedModel
from app.model.attention import ATTENTION_NAME
from tests.support.models import build_backbone, tiny_backbone

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    ("architecture", "windows"),
    [
        ("llama", (None, None, None)),
        ("mistral", (24, 24, 24)),
        ("gemma3_text", (24, 24, None)),
        ("gpt2", (None, None, None)),
    ],
)
def test_each_layer_shows_its_window(architecture: str, windows: tuple[int | None, ...]) -> None:
    layers = tiny_backbone(architecture).layers
    assert layers.windows == windows
    assert layers.window == min((each for each in windows if each is not None), default=None)


def test_a_window_as_long_as_the_positions_is_none() -> None:
    assert build_backbone("mistral", sliding_window=512).layers.window is None


def causal_but(change: Mask) -> Any:
    """In the place of a model's own call: a causal mask, changed for some pairs of positions."""

    def create(*args: Any, **kwargs: Any) -> Any:
        return create_causal_mask(*args, **kwargs, and_mask_function=change)

    return create


@pytest.mark.parametrize(
    "change",
    [
        lambda batch, head, query, key: query - key < 100,
        lambda batch, head, query, key: (query < 400) | (key % 2 == 0),
        lambda batch, head, query, key: query // 128 == key // 128,
        lambda batch, head, query, key: key > query - 511,
    ],
)
def test_a_mask_that_hides_something_far_away_is_refused(change: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial of some tokens would find it."""
    monkeypatch.setattr(modeling_llama, "create_causal_mask", causal_but(change))
    with pytest.raises(UnsupportedModel, match="does not tell its attention layers what they see"):
        build_backbone("llama")


def test_a_model_that_makes_its_masks_itself_must_have_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a mask says of far positions cannot be asked."""

    def create(*args: Any, **kwargs: Any) -> Tensor | None:
        mask: Tensor | None = create_causal_mask(*args, **kwargs)
        return None if mask is None else mask.clone()

    monkeypatch.setattr(modeling_llama, "create_causal_mask", create)
    assert build_backbone("llama").layers.window is None
    with pytest.raises(UnsupportedModel, match="does not tell its attention layers what they see"):
        build_backbone("llama", sliding_window=24)


def test_a_layer_that_counts_tokens_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queries grow at far positions, of which a packed batch knows only the places in the batch."""
    rotate = modeling_llama.apply_rotary_pos_emb

    def count_and_rotate(query: Tensor, key: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        query, key = rotate(query, key, *rest, **named)
        places = torch.arange(query.shape[2])[:, None]
        return query * torch.log1p(places // 100 + 1.0), key

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", count_and_rotate)
    with pytest.raises(UnsupportedModel, match="counts tokens inside of its attention layers"):
        build_backbone("llama")


def test_a_tensor_that_nothing_here_computes_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_llama.LlamaAttention.forward

    def with_biases(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **kwargs, slopes=torch.ones(4))

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", with_biases)
    with pytest.raises(UnsupportedModel, match="softswap does not compute: slopes"):
        build_backbone("llama")


def test_a_model_is_its_own_again_after_it_was_probed() -> None:
    model = build_backbone("llama").model
    assert model.config._attn_implementation == ATTENTION_NAME
    assert ATTENTION_NAME in ALL_MASK_ATTENTION_FUNCTIONS
    assert not any(module._forward_pre_hooks for module in model.modules())
