"""Attention over KV blocks for unmodified transformers models, through `transformers.AttentionInterface`.

The model calls `attention_forward` in every layer. Without a batch that is transformers' own SDPA, which the tuner
differentiates through. With a batch, the layer's new keys and values are written to their blocks and the packed
queries attend through block tables. Implementations share one signature, `Attend`:

    attend_reference   one sequence after another, softmax written out: the truth the others are tested against
    attend_sdpa        sequences that add one token in one padded SDPA, the others one by one: any device

`Kernels` has the faster ones of each kind of device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.errors import UnsupportedModel
from app.model.kv_cache import KVCache, KVShape, to_device

ATTENTION_NAME = "softswap"

Attend = Callable[[Tensor, Tensor, Tensor, "AttentionBatch", float, int | None], Tensor]


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """Which sequences, positions and blocks the tokens of one packed forward belong to.

    Attributes:
        kv_cache: the blocks.
        attend: the implementation.
        slots: (num_tokens,) int64: the cache slot (block * block_size + offset) of each packed token.
        query_lens: tokens each sequence adds in this forward, in packed order; those with one token come first.
        kv_lens: tokens each sequence can see at its last new token, prefix and itself included.
        block_tables: (num_sequences, max_num_blocks) int32, padded with block 0.
        copies: pairs of (source slots, target slots), int64, applied in order after the write and before the read:
            the partly filled last block of a prefix, given to each sequence that continues it.
        true_kv_lens: (num_sequences,) int32 on the device, if they change from one replay of this forward to the
            next; `kv_lens` is then as much as they can become. None: they are `kv_lens`.
        memo: what an implementation derived from the lengths in one layer, for the next layers.
    """

    kv_cache: KVCache
    attend: Attend
    slots: Tensor
    query_lens: list[int]
    kv_lens: list[int]
    block_tables: Tensor
    copies: Sequence[tuple[Tensor, Tensor]] = ()
    true_kv_lens: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def num_decodes(self) -> int:
        """Sequences that add one token; they stand first."""
        return next((i for i, length in enumerate(self.query_lens) if length > 1), len(self.query_lens))

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Where each sequence's tokens begin and end among the packed ones."""
        return list(pairwise(accumulate(self.query_lens, initial=0)))

    @cached_property
    def cumulative_query_lens(self) -> Tensor:
        """(num_sequences + 1,) int32 on the device, as FlashAttention wants it."""
        device = self.slots.device
        if self.num_decodes == len(self.query_lens):
            return torch.arange(self.num_decodes + 1, dtype=torch.int32, device=device)
        return to_device(list(accumulate(self.query_lens, initial=0)), device, torch.int32)

    @cached_property
    def kv_lens_tensor(self) -> Tensor:
        """(num_sequences,) int32 on the device."""
        if self.true_kv_lens is not None:
            return self.true_kv_lens
        return to_device(self.kv_lens, self.slots.device, torch.int32)

    def runs(self, num_queries: int) -> Tensor:
        """The packed tokens in runs of at most that many queries of one sequence.

        Returns: (num_runs, 4) int32 on the device: of each run its first packed token, its sequence, the keys that its
            first query sees, its queries.
        """
        key = ("runs", num_queries)
        if key not in self.memo:
            kv_lens = self.kv_lens if self.true_kv_lens is None else self.true_kv_lens.tolist()
            runs = [
                (token, i, kv_len - end + token + 1, min(num_queries, end - token))
                for i, ((start, end), kv_len) in enumerate(zip(self.spans, kv_lens, strict=True))
                for token in range(start, end, num_queries)
            ]
            self.memo[key] = to_device(runs, self.block_tables.device, torch.int32)
        return self.memo[key]


def register_attention() -> None:
    """Make the name known to transformers. Doing it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)


def no_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask, which transformers passes through untouched (`masking_utils`, early exit).

    The packed forward needs none: who sees whom follows from the batch.
    """
    return torch.empty((1, 1, 0, 0), device=device)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    batch: AttentionBatch | None = None,
    sliding_window: int | None = None,
    meet: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What every attention layer calls.

    Args:
        query: (1, num_heads, num_tokens, head_dim); key and value: (1, num_kv_heads, num_tokens, head_dim).
        batch: the packed batch, or None for ordinary attention.
        meet: of ordinary attention: given the keys and values, returns those to attend to (see `last_layer`).

    Returns: (1, num_tokens, num_heads, head_dim), and None for the weights, which are not asked for.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise UnsupportedModel("attention with soft caps, sinks or position biases is not supported", param="model")
    if batch is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if meet is not None:
            key, value = meet(key, value)
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    layer: Any = module
    keys, values = batch.kv_cache.layers[layer.layer_idx]
    _write(keys, key[0].transpose(0, 1), batch)
    _write(values, value[0].transpose(0, 1), batch)
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    packed = batch.attend(query[0].transpose(0, 1), keys, values, batch, scale, sliding_window)
    return packed.contiguous().unsqueeze(0), None  # some models view it in another shape


def _write(blocks: Tensor, rows: Tensor, batch: AttentionBatch) -> None:
    """Store (num_tokens, num_kv_heads, head_dim) rows at their slots, then hand on the tails of prefixes."""
    flat = blocks.flatten(0, 1)
    flat.index_copy_(0, batch.slots, rows.to(flat.dtype))
    for source, target in batch.copies:
        flat.index_copy_(0, target, flat.index_select(0, source))


def attend_reference(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """softmax(q k^T * scale + mask) v, one sequence after another, in float32 (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (num_tokens, num_heads, head_dim), packed.
        keys, values: (num_blocks, block_size, num_kv_heads, head_dim).
        scale: what the products are multiplied with.
        window: a token sees itself and the `window - 1` tokens before it; None: all of them.

    Returns: (num_tokens, num_heads, head_dim) in the dtype of `query`.
    """
    outputs, kv_lens = [], batch.kv_lens_tensor.tolist()
    for i, rows in enumerate(query.split(batch.query_lens)):
        kv_len = kv_lens[i]
        k, v = (_gather(blocks, batch.block_tables[i : i + 1], kv_len)[0].float() for blocks in (keys, values))
        groups = query.shape[1] // keys.shape[2]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", rows.float(), k) * scale
        scores = scores.masked_fill(~_visible(len(rows), kv_len, window, query.device), -math.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(query.dtype))
    return torch.cat(outputs)


def largest_error(attend: Attend, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """The largest difference to the reference in small batches: code compiled here has been seen by no test."""
    generator, errors = torch.Generator().manual_seed(0), []
    for query_lens in ([1, 1, 1], [1, 2, 70]):
        cache = KVCache(KVShape(1, 2, head_dim), num_blocks=40, block_size=16, dtype=dtype, device=device)
        cache.blocks.copy_(torch.randn(cache.blocks.shape, generator=generator))
        tables = torch.arange(1, 40, dtype=torch.int32, device=device).view(3, 13)
        query = torch.randn(sum(query_lens), 8, head_dim, generator=generator).to(device, dtype)
        for window in (None, 50):
            batch = AttentionBatch(cache, attend, tables, query_lens, [1, 90, 200], tables)
            arguments = (query, *cache.layers[0], batch, head_dim**-0.5, window)
            errors.append(float((attend(*arguments) - attend_reference(*arguments)).abs().max()))
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def attend_sdpa(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """The same as `attend_reference` through `scaled_dot_product_attention`."""
    num_decodes = batch.num_decodes
    outputs = []
    if num_decodes:
        outputs.append(_attend_decodes(query[:num_decodes], keys, values, batch, scale, window))
    for i in range(num_decodes, len(batch.query_lens)):
        (start, end), kv_len = batch.spans[i], batch.kv_lens[i]
        k, v = (_gather(blocks, batch.block_tables[i : i + 1], kv_len) for blocks in (keys, values))
        mask_key = ("chunk", end - start, kv_len, window)
        if mask_key not in batch.memo:
            batch.memo[mask_key] = _visible(end - start, kv_len, window, query.device)
        outputs.append(_attend_chunk(query[start:end], k, v, batch.memo[mask_key], scale))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _attend_chunk(query: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """(length, heads, dim) queries on (1, kv_len, kv_heads, dim) keys; a group's heads are stacked as more queries."""
    length, num_heads, head_dim = query.shape
    num_kv_heads = k.shape[2]
    groups = num_heads // num_kv_heads
    q = query.view(length, num_kv_heads, groups, head_dim).permute(1, 2, 0, 3).reshape(1, num_kv_heads, -1, head_dim)
    stacked = mask if groups == 1 else mask.repeat(groups, 1)
    out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=stacked, scale=scale)
    return out.view(num_kv_heads, groups, length, head_dim).permute(2, 0, 1, 3).reshape(length, num_heads, head_dim)


def _attend_decodes(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """One query per sequence, all sequences in one call, keys padded to the longest."""
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    kv_lens = batch.kv_lens[:num_sequences]
    k, v = (_gather(blocks, batch.block_tables[:num_sequences], max(kv_lens)) for blocks in (keys, values))
    if ("decode", window) not in batch.memo:
        batch.memo["decode", window] = _decode_mask(batch.kv_lens_tensor[:num_sequences], k.shape[1], window)
    q = query.view(num_sequences, num_kv_heads, num_heads // num_kv_heads, head_dim)
    mask = batch.memo["decode", window]
    out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale)
    return out.reshape(num_sequences, num_heads, head_dim)


def _gather(blocks: Tensor, block_tables: Tensor, kv_len: int) -> Tensor:
    """(num_sequences, kv_len, num_kv_heads, head_dim): the first `kv_len` tokens of each table."""
    _, block_size, num_kv_heads, head_dim = blocks.shape
    tables = block_tables[:, : -(-kv_len // block_size)]
    rows = blocks.flatten(1).index_select(0, tables.reshape(-1))
    return rows.view(len(tables), -1, num_kv_heads, head_dim)[:, :kv_len]


def _visible(query_len: int, kv_len: int, window: int | None, device: torch.device) -> Tensor:
    """(query_len, kv_len) bool: which token each of the last `query_len` tokens may see."""
    q = torch.arange(kv_len - query_len, kv_len, device=device)[:, None]
    k = torch.arange(kv_len, device=device)[None, :]
    visible = k <= q
    return visible if window is None else visible & (k > q - window)


def _decode_mask(kv_lens: Tensor, width: int, window: int | None) -> Tensor:
    """(num_sequences, 1, 1, width) bool."""
    k = torch.arange(width, device=kv_lens.device)[None, :]
    lens = kv_lens[:, None]
    visible = k < lens
    if window is not None:
        visible &= k >= lens - window
    return visible[:, None, None, :]
