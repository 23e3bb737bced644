"""How long a prefix's keys and values are in each layer, compared with those that a real text leaves in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from app.model.backbone import Backbone
from app.model.layout import encode_text

PERCENTILES = (5, 25, 50, 75, 95)
REFERENCE_TEXT = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood. Everyone is entitled to all the rights and freedoms "
    "set forth in this Declaration, without distinction of any kind, such as race, colour, sex, language, religion, "
    "political or other opinion, national or social origin, property, birth or other status."
)
"""Articles 1 and 2 of the Universal Declaration of Human Rights (1948)."""


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """L2 norms over all heads of a layer, percentile (PERCENTILES) to norm.

    Attributes:
        text_keys, text_values: of REFERENCE_TEXT's tokens.
        keys, values: of the prompt's virtual tokens.
    """

    layer: int
    text_keys: dict[int, float]
    text_values: dict[int, float]
    keys: dict[int, float]
    values: dict[int, float]


@dataclass(frozen=True, eq=False)
class KeyValueNorms:
    """Attributes:
    layers: by layer.
    units: (num_layers, 2) float32, the text's median norms of keys and of values: each layer's natural unit.
    relative: (num_virtual_tokens, num_layers, 2) float32, the prompt's norms in that unit.
    """

    layers: tuple[LayerNorms, ...]
    units: torch.Tensor
    relative: torch.Tensor

    @classmethod
    @torch.no_grad()
    def measure(cls, backbone: Backbone, rows: torch.Tensor) -> KeyValueNorms:
        """Args: rows: (num_virtual_tokens, kv_row_size), K0, V0, K1, V1, ..."""
        text, prompt = _text_norms(backbone), split_rows(backbone, rows).norm(dim=3)
        units = text.median(dim=0).values.clamp(min=1e-12)
        layers = tuple(
            LayerNorms(layer, *(percentiles_of(norms[:, layer, part]) for norms in (text, prompt) for part in (0, 1)))
            for layer in range(backbone.kv_shape.num_layers)
        )
        return cls(layers, units, prompt / units)


def split_rows(backbone: Backbone, rows: torch.Tensor) -> torch.Tensor:
    """(num_virtual_tokens, kv_row_size) to (num_virtual_tokens, num_layers, 2, num_kv_heads * head_dim)."""
    return rows.float().view(len(rows), backbone.kv_shape.num_layers, 2, -1)


def percentiles_of(norms: torch.Tensor) -> dict[int, float]:
    """The value nearest to each percentile: torch computes no quantiles of large tensors."""
    ordered = norms.sort().values.tolist()
    return {percent: ordered[round(percent / 100 * (len(ordered) - 1))] for percent in PERCENTILES}


def _text_norms(backbone: Backbone) -> torch.Tensor:
    """(num_tokens, num_layers, 2) float32 on CPU, without the first token, which attention uses as a sink (Xiao et al.
    2024, section 3.1) and whose keys and values are like no other's."""
    token_ids = encode_text(backbone.tokenizer, REFERENCE_TEXT)[: backbone.max_model_len]
    cache = DynamicCache()
    backbone.forward(cache, input_ids=torch.tensor([token_ids], device=backbone.device), logits_to_keep=1)
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    width_last = torch.stack(pairs).permute(3, 0, 1, 2, 4).flatten(start_dim=3)
    return width_last[1:].float().norm(dim=3).cpu()
