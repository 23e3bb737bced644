"""The compiled attention for any dtype and head size, with the signature of the other implementations."""

from __future__ import annotations

import platform
import shutil

import pytest
import torch

from app.model.attention import AttentionBatch
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import COMPILERS, MACHINES

needs_compiler = pytest.mark.skipif(
    platform.machine() not in MACHINES or not any(map(shutil.which, COMPILERS)),
    reason="needs a C compiler on x86",
)


def attend_compiled(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    attend = compile_attention(keys.dtype, keys.shape[3])
    return attend(query, keys, values, batch, scale, window)
