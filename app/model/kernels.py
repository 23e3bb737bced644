"""Kernels: what computes faster than torch's own code on one kind of device, and the only door to it.

`app.model.cpu` (C, compiled at first use) and `app.model.cuda` (Triton, FlashAttention, CUDA graphs) each have one
implementation; no other module of the package imports anything from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.model.attention import Attend, attend_sdpa
from app.model.decode_graphs import Replay
from app.model.kv_cache import KVShape

Forward = Callable[..., torch.Tensor]


class Replacements:
    """What computes a model's modules in place of their own `forward` while a step runs; none by default.

    Only in the thread that runs the step: others, such as one that looks into a prompt, compute with the modules' own.

    Attributes:
        module_to_forward: each module and its replacement.
    """

    def __init__(self, module_to_forward: Mapping[nn.Module, Forward] | None = None) -> None:
        self.module_to_forward = dict(module_to_forward or {})
        self._thread: int | None = None
        self._calls = [(module, self._call(module, forward)) for module, forward in self.module_to_forward.items()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the modules compute with their replacements; no gradient may be wanted there."""
        assert not torch.is_grad_enabled()
        self._thread = get_ident()
        for module, call in self._calls:
            module.__dict__["forward"] = call
        try:
            yield
        finally:
            for module, _ in self._calls:
                module.__dict__.pop("forward", None)  # another engine's thread may have been faster

    def _call(self, module: nn.Module, forward: Forward) -> Forward:
        plain = type(module).forward

        def call(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if get_ident() == self._thread else plain(module, *args, **kwargs)

        return call


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
