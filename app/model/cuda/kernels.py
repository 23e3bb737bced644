"""CudaKernels: the choice among what runs on one CUDA device, and attention by the FlashAttention inside torch.

That is `varlen_attn` with a block table, after torch 2.11.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from app.model.attention import Attend, AttentionBatch, attend_sdpa, largest_error
from app.model.decode_graphs import Replay
from app.model.kernels import Kernels

BLOCK_MULTIPLE = 256
"""Tokens in a block must be a multiple of this for FlashAttention."""
MAX_TRITON_ERROR = 0.1
"""Of values up to five or so: a few of bfloat16's roundings, which are 0.03 there."""


class CudaKernels(Kernels):
    """FlashAttention inside torch, or a Triton kernel; decode steps captured as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def block_multiple(self, dtype: torch.dtype, head_dim: int) -> int:
        return BLOCK_MULTIPLE if can_varlen(self._device, dtype, head_dim) else 1

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        if can_varlen(self._device, dtype, head_dim):
            return attend_varlen, "FlashAttention inside torch"
        try:
            from app.model.cuda.triton_attention import attend_triton
        except ImportError:
            return attend_sdpa, "neither FlashAttention over blocks nor Triton is there"
        try:
            error = largest_error(attend_triton, self._device, dtype, head_dim)
        except Exception as failure:
            return attend_sdpa, f"Triton failed: {str(failure).partition(chr(10))[0]}"
        if not error <= MAX_TRITON_ERROR:
            return attend_sdpa, f"the Triton kernel computes something else here (error {error:.1e})"
        return attend_triton, "a Triton kernel: this torch has no FlashAttention over blocks for this device or dtype"

    @torch.inference_mode()
    def capture(self, compute: Replay, sizes: Sequence[int]) -> Replay:
        """A graph of every size, the largest first, whose memory the others share."""
        size_to_graph: dict[int, torch.cuda.CUDAGraph] = {}
        pool = torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):
            compute(size)  # libraries prepare themselves, kernels are compiled
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                compute(size)
            size_to_graph[size] = graph
        return lambda num_rows: size_to_graph[num_rows].replay()


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
