"""Keys and values are measured against those that a text leaves in the cache."""

from __future__ import annotations

import pytest
import torch

from app.errors import InvalidInput
from app.insight.keys_values import PERCENTILES, REFERENCE_TEXT, KeyValueNorms, split_rows
from app.insight.report import CachedToken, view_prompt
from app.model.backbone import Backbone
from app.model.layout import encode_text
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import TaskPrompt
from tests.support.models import tiny_backbone


def text_rows(backbone: Backbone) -> torch.Tensor:
    """The reference text as a prefix, without its first token."""
    token_ids = torch.tensor([encode_text(backbone.tokenizer, REFERENCE_TEXT)[: backbone.max_model_len]])
    with torch.no_grad():
        return PromptPrefix.of_embeddings(backbone, backbone.embed(token_ids)).kv_rows()[0][1:]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_the_text_itself_is_as_long_as_text(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    norms = KeyValueNorms.measure(backbone, text_rows(backbone))
    assert [layer.layer for layer in norms.layers] == [0, 1, 2]
    for layer in norms.layers:
        assert layer.keys == pytest.approx(layer.text_keys, rel=1e-4)
        assert layer.values == pytest.approx(layer.text_values, rel=1e-4)
        assert tuple(layer.keys) == PERCENTILES
    assert norms.relative.median(dim=0).values.flatten().tolist() == pytest.approx([1.0] * 6, rel=1e-4)


def test_a_prefix_twice_as_long_says_so_layer_by_layer() -> None:
    backbone = tiny_backbone()
    rows = text_rows(backbone)
    split = split_rows(backbone, rows)
    plain, doubled = (KeyValueNorms.measure(backbone, each) for each in (rows, _with_doubled_keys(split, layer=1)))
    ratio = doubled.relative / plain.relative
    assert ratio[:, 1, 0].tolist() == pytest.approx([2.0] * len(rows), rel=1e-4)
    ratio[:, 1, 0] = 1.0
    assert ratio.flatten().tolist() == pytest.approx([1.0] * ratio.numel(), rel=1e-4)


def _with_doubled_keys(split: torch.Tensor, layer: int) -> torch.Tensor:
    changed = split.clone()
    changed[:, layer, 0] *= 2
    return changed.flatten(start_dim=1)


def test_a_view_of_keys_and_values_says_that_they_have_no_near_tokens() -> None:
    backbone = tiny_backbone()
    rows = text_rows(backbone)[:6].clone()
    rows[4] = rows[1] * 3
    prompt = TaskPrompt.from_kv(rows, backbone.fingerprint)
    view = view_prompt(backbone, prompt, initial=torch.zeros_like(rows))
    assert "do not lie among the vocabulary's embeddings" in view.note
    assert view.vocabulary_norms == {}
    assert (1, 4) in view.near_duplicates
    one, three = view.virtual_tokens[1], view.virtual_tokens[4]
    assert isinstance(one, CachedToken)
    assert (three.key_norm / one.key_norm, three.value_norm / one.value_norm) == pytest.approx((3.0, 3.0), rel=1e-4)
    assert one.drift == pytest.approx(one.norm)
    with pytest.raises(InvalidInput, match="no near tokens"):
        view_prompt(backbone, prompt, num_nearest=3)
