"""Attention over KV blocks by the FlashAttention inside torch: `varlen_attn` with a block table, after torch 2.11."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from app.model.attention import AttentionBatch

BLOCK_MULTIPLE = 256


def can_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_varlen` can run; its blocks must hold a multiple of BLOCK_MULTIPLE tokens."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    is_flash = device.type == "cuda" and is_half and head_dim <= 256 and head_dim % 8 == 0
    is_ampere_or_newer = is_flash and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_ampere_or_newer and has_paged_varlen()


def has_paged_varlen() -> bool:
    """Whether the installed torch's `varlen_attn` takes block tables, and all else `attend_varlen` gives it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    wanted = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"}
    return wanted <= set(inspect.signature(varlen_attn).parameters)


def attend_varlen(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """The same as `attend_reference` through FlashAttention in torch; blocks must be multiples of 256 tokens."""
    from torch.nn.attention.varlen import varlen_attn

    max_query_len = max(batch.query_lens)
    # One query sees all keys there are, and only without any mask does FlashAttention take the query heads that share
    # keys as rows of one product, and split long sequences (`mha_varlen_fwd`, `seqlenq_ngroups_swapped`).
    causal = (-1, -1) if max_query_len == 1 else (-1, 0)
    output = varlen_attn(
        query.contiguous(),
        keys,
        values,
        batch.cumulative_query_lens,
        None,
        max_query_len,
        max(batch.kv_lens),
        scale=scale,
        window_size=causal if window is None else (window - 1, 0),
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=batch.kv_lens_tensor,
        block_table=batch.block_tables,
    )
    assert isinstance(output, Tensor)
    return output
