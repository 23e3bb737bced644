"""Kernels: what computes faster than torch's own code on one kind of device, and the only door to it.

`app.model.cpu` (C, compiled at first use) and `app.model.cuda` (Triton, FlashAttention, CUDA graphs) each have one
implementation; no other module of the package imports anything from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from app.model.attention import Attend, attend_sdpa
from app.model.cpu.kernels import CpuKernels, usable_cores
from app.model.cuda.kernels import CudaKernels
from app.model.decode_graphs import Replay
from app.model.kv_cache import KVShape
from app.model.replacements import Replacements

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Kernels", "PlainKernels", "kernels_for", "usable_cores"]


class Kernels(Protocol):
    """Each choice comes with the reason for it, for the log."""

    def block_multiple(self, dtype: torch.dtype, head_dim: int) -> int:
        """The number of tokens in a block of the KV cache must be a multiple of this."""

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        """The fastest attention that this machine can run."""

    def choose_replacements(
        self, model: PreTrainedModel, shape: KVShape, attend: Attend | None = None
    ) -> tuple[Replacements, str]:
        """What computes the model's layers, measured to be the fastest.

        Args: attend: the attention that the engine uses; None is the one that `choose_attend` gives.
        """

    def choose_num_threads(self, work: Callable[[], object]) -> tuple[int, str] | None:
        """How many of the host's threads compute; None leaves torch's own number.

        Args: work: something like what will be computed, some milliseconds long.
        """

    def capture(self, compute: Replay, sizes: Sequence[int]) -> Replay:
        """What computes the same from the same buffers, for these sizes. Raises RuntimeError: it cannot be captured."""


class PlainKernels:
    """Torch's own code: for devices that nothing faster is written for."""

    def block_multiple(self, dtype: torch.dtype, head_dim: int) -> int:
        return 1

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        return attend_sdpa, "no faster one is written for this device"

    def choose_replacements(
        self, model: PreTrainedModel, shape: KVShape, attend: Attend | None = None
    ) -> tuple[Replacements, str]:
        return Replacements(), "torch's own (nothing faster is written for this device)"

    def choose_num_threads(self, work: Callable[[], object]) -> None:
        return None

    def capture(self, compute: Replay, sizes: Sequence[int]) -> Replay:
        return compute


def kernels_for(device: torch.device) -> Kernels:
    """The kernels of this kind of device."""
    if device.type == "cpu":
        return CpuKernels()
    return CudaKernels(device) if device.type == "cuda" else PlainKernels()
