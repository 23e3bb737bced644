"""CudaKernels: the choice among what runs on one CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.model.attention import Attend, attend_sdpa, largest_error
from app.model.cuda.varlen_attention import BLOCK_MULTIPLE, attend_varlen, can_varlen
from app.model.decode_graphs import Replay
from app.model.kernels import Kernels

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
