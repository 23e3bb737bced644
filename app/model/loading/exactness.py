"""Whether a model computes packed sequences as it computes them alone: asked once at load, of the model itself.

Transformers has some two hundred causal models. Most send every layer's keys and values through the attention
interface and take positions as given; those that do something of their own would answer, and answer wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from app.errors import UnsupportedModel
from app.model.attention import ATTENTION_NAME, Attend, AttentionBatch, attend_sdpa, attention_forward, no_mask
from app.model.kv_cache import KVCache, KVShape

BLOCK_SIZE = 8
CUTS, ENDS = (4, 2), (5, 5)
"""Of two sequences, each in two chunks: the second forward mixes one that adds a token with one that adds more."""
MAX_RELATIVE_ERROR = 1e-3
MAX_RELATIVE_ERROR_OF_HALVES = 0.2


@torch.no_grad()
def check_packing(model: PreTrainedModel, shape: KVShape) -> None:
    """Compare two sequences packed in chunks with each alone in a plain forward.

    Raises:
        UnsupportedModel: the last logits differ, or the packed forward fails.
    """
    kind = model.config.model_type
    cache = KVCache(shape, num_blocks=3, block_size=BLOCK_SIZE, dtype=model.dtype, device=model.device)
    embeds = embed_trial(model)
    try:
        compute_packed(model, cache, embeds, (0, 0), CUTS, attend_sdpa)
        packed = compute_packed(model, cache, embeds, CUTS, ENDS, attend_sdpa)
    except Exception as cause:
        raise UnsupportedModel(f"{kind} cannot be computed in packed batches", param="model") from cause
    limit = MAX_RELATIVE_ERROR if model.dtype.itemsize >= torch.float32.itemsize else MAX_RELATIVE_ERROR_OF_HALVES
    for row, rows in zip(packed, embeds, strict=True):
        mask = torch.ones((1, len(rows)), dtype=torch.int64, device=rows.device)
        alone = model(inputs_embeds=rows[None], attention_mask=mask, use_cache=False).logits[0, -1].float()
        error = float((row - alone).norm() / alone.norm().clamp(min=1e-6))
        if not error <= limit:
            raise UnsupportedModel(f"{kind} answers differently in packed batches (error {error:.1e})", param="model")


def embed_trial(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Rows of two sequences, (5, hidden_size) each, of tokens that are all different."""
    layer = model.get_input_embeddings()
    token_ids: torch.Tensor = torch.arange(3, 3 + sum(ENDS), device=model.device) % layer.weight.shape[0]
    rows: torch.Tensor = layer(token_ids)
    return rows.split(ENDS)


def compute_packed(
    model: PreTrainedModel,
    cache: KVCache,
    embeds: Sequence[torch.Tensor],
    starts: Sequence[int],
    ends: Sequence[int],
    attend: Attend,
) -> torch.Tensor:
    """(num_sequences, vocab_size) float32: the logits after the last token of each.

    Args:
        cache: of blocks of BLOCK_SIZE tokens; the i-th sequence has block 1 + i.
        embeds: rows of each sequence, of which those from its start to its end are computed.
    """
    device = model.device
    spans = list(zip(starts, ends, strict=True))
    positions = torch.cat([torch.arange(start, end, device=device) for start, end in spans])
    lengths = [end - start for start, end in spans]
    blocks = torch.arange(1, 1 + len(spans), device=device)
    slots = blocks.repeat_interleave(torch.tensor(lengths, device=device)) * BLOCK_SIZE + positions
    batch = AttentionBatch(
        kv_cache=cache,
        attend=attend,
        slots=slots,
        query_lens=lengths,
        kv_lens=list(ends),
        block_tables=blocks[:, None].to(torch.int32),
    )
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    output = model(
        inputs_embeds=torch.cat([rows[start:end] for rows, (start, end) in zip(embeds, spans, strict=True)])[None],
        position_ids=positions[None],
        attention_mask=no_mask(device),
        use_cache=False,
        logits_to_keep=last,
        batch=batch,
    )
    return output.logits[0].float()


def probe_kv_shape(model: PreTrainedModel) -> KVShape:
    """What the model's layers really leave in a cache, seen in a forward over two tokens.

    Raises:
        UnsupportedModel: a layer does not call the attention interface, layers differ, or keys and values differ in
            size: such a cache cannot be kept in blocks of one shape. Or the model's sliding window stands in its
            masks only, which a packed forward has none of.
    """
    from transformers import AttentionInterface

    seen: dict[int, tuple[torch.Size, torch.Size]] = {}
    windows: set[int | None] = set()

    def record(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen[module.layer_idx] = (key.shape, value.shape)
        windows.add(kwargs.get("sliding_window"))
        return attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("softswap_probe", record)
    kind = model.config.model_type
    model.set_attn_implementation("softswap_probe")
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device), use_cache=False)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{kind} does not compute a plain text", param="model") from error
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(seen) != list(range(num_layers)):
        raise UnsupportedModel(f"{kind} has layers that keep no keys and values per token", param="model")
    shapes = {shape for pair in seen.values() for shape in pair}
    if len(shapes) != 1:
        raise UnsupportedModel(f"{kind} has keys and values of different sizes", param="model")
    if _has_window(model.config.get_text_config()) and windows == {None}:
        raise UnsupportedModel(f"{kind} does not tell its attention layers their sliding window", param="model")
    (shape,) = shapes
    return KVShape(num_layers=num_layers, num_kv_heads=shape[1], head_dim=shape[3])


def _has_window(config: Any) -> bool:
    """Whether some layer of the model is said to see less than all positions."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return "sliding_attention" in layer_types
    window = getattr(config, "sliding_window", None)
    is_used = getattr(config, "use_sliding_window", True)
    return window is not None and is_used and window < config.max_position_embeddings
