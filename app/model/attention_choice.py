"""choose_attend: the fastest attention that a device, a dtype and the installed torch and compiler can run."""

from __future__ import annotations

import inspect

import torch

from app.model.attention import Attend, attend_sdpa, attend_varlen
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import CompilationError

VARLEN_BLOCK_MULTIPLE = 256
MAX_TRITON_ERROR = 0.1
"""Of values up to five or so: a few of bfloat16's roundings, which are 0.03 there."""


def choose_attend(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
    """The implementation and why it is this one, for the log."""
    if can_varlen(device, dtype, head_dim):
        return attend_varlen, "FlashAttention inside torch"
    if device.type == "cuda":
        return _triton_or_sdpa(device, dtype, head_dim)
    if device.type != "cpu":
        return attend_sdpa, "no faster one is written for this device"
    try:
        return compile_attention(dtype, head_dim), "compiled for this CPU"
    except CompilationError as error:
        return attend_sdpa, str(error)


def _triton_or_sdpa(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Attend, str]:
    """For CUDA where FlashAttention over blocks cannot run: an older torch, float32, an unusual head size."""
    try:
        from app.model.cuda.triton_attention import attend_triton, check_triton
    except ImportError:
        return attend_sdpa, "neither FlashAttention over blocks nor Triton is there"
    try:
        error = check_triton(device, dtype, head_dim)
    except Exception as failure:
        return attend_sdpa, f"Triton failed: {str(failure).partition(chr(10))[0]}"
    if not error <= MAX_TRITON_ERROR:
        return attend_sdpa, f"the Triton kernel computes something else here (error {error:.1e})"
    return attend_triton, "a Triton kernel: this torch has no FlashAttention over blocks for this device or dtype"


def can_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_varlen` can run; it wants blocks of a multiple of `VARLEN_BLOCK_MULTIPLE` tokens."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    is_flash = device.type == "cuda" and is_half and head_dim <= 256 and head_dim % 8 == 0
    return is_flash and _is_ampere_or_newer(device) and has_paged_varlen()


def _is_ampere_or_newer(device: torch.device) -> bool:
    """What FlashAttention asks of a CUDA device."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_paged_varlen() -> bool:
    """Whether the installed torch's `varlen_attn` takes block tables, and all else `attend_varlen` gives it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    wanted = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"}
    return wanted <= set(inspect.signature(varlen_attn).parameters)
