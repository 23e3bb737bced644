"""CpuKernels: the choice among what is compiled for this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from app.model.attention import Attend, attend_sdpa
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import CompilationError
from app.model.cpu.replacement_choice import choose_replacements
from app.model.cpu.thread_choice import choose_num_threads
from app.model.kernels import Kernels
from app.model.kv_cache import KVShape
from app.model.replacements import Replacements

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CpuKernels(Kernels):
    """Attention and whole layers in C, where a compiler is there and C is measured to be faster."""

    def choose_attend(self, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
        try:
            return compile_attention(dtype, head_dim), "compiled for this CPU"
        except CompilationError as error:
            return attend_sdpa, str(error)

    def choose_replacements(
        self, model: PreTrainedModel, shape: KVShape, attend: Attend | None = None
    ) -> tuple[Replacements, str]:
        attend = attend or self.choose_attend(model.dtype, shape.head_dim)[0]
        return choose_replacements(model, shape, with_attention=attend.__name__ == "attend_compiled")

    def choose_num_threads(self, work: Callable[[], object]) -> tuple[int, str]:
        return choose_num_threads(work)
