"""Kernels: what computes faster than torch's own code on one kind of device, and the only door to it.

`app.model.cpu` (C, compiled at first use) and `app.model.cuda` (Triton, FlashAttention, CUDA graphs) each have one
implementation; no other module of the package imports anything from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from app.model.attention import Attend, attend_sdpa
from app.model.decode_graphs import Replay
from app.model.kv_cache import KVShape
from app.model.replacements import Replacements


class Kernels:
    """What to compute with, each with the reason for it, for the log. As they stand here: torch's own code."""

    def block_multiple(self, dtype: torch.dtype, head_dim: int) -> int:
        """The number of tokens in a block of the KV cache must be a multiple of this."""
        return 1

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        """The fastest attention that this machine can run."""
        return attend_sdpa, "no faster one is written for this device"

    def choose_replacements(self, model: PreTrainedModel, shape: KVShape, attend: Attend) -> tuple[Replacements, str]:
        """What computes the model's layers, measured to be the fastest.

        Args: attend: the attention that the engine uses.
        """
        return Replacements(), "torch's own (the model is not on a CPU)"

    def capture(self, compute: Replay, sizes: Sequence[int]) -> Replay:
        """What computes the same from the same buffers, for these sizes. Raises RuntimeError: it cannot be captured."""
        return compute


def kernels_for(device: torch.device) -> Kernels:
    """The kernels of this kind of device."""
    if device.type == "cpu":
        from app.model.cpu.kernels import CpuKernels

        return CpuKernels()
    if device.type == "cuda":
        from app.model.cuda.kernels import CudaKernels

        return CudaKernels(device)
    return Kernels()
