from __future__ import annotations

import pytest
import torch

from app.model import attention_choice
from app.model.attention import attend_sdpa, attend_varlen
from app.model.attention_choice import can_varlen, choose_attend, has_paged_varlen
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import CompilationError
from tests.support.compiled import needs_compiler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "is_flash"),
    [
        ("cpu", torch.float32, 64, False),
        ("cpu", torch.bfloat16, 64, False),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 512, False),
        ("cuda", torch.bfloat16, 60, False),
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, 256, True),
    ],
)
def test_flash_attention_is_chosen_where_it_can_run(
    device: str, dtype: torch.dtype, head_dim: int, is_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    place = torch.device(device)
    assert can_varlen(place, dtype, head_dim) is (is_flash and has_paged_varlen())
    attend, _ = choose_attend(place, dtype, head_dim)
    assert (attend is attend_varlen) is (is_flash and has_paged_varlen())
    assert device == "cpu" or attend in {attend_varlen, attend_sdpa}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernel runs, and is chosen")
def test_a_device_on_which_neither_kernel_runs_gets_the_slower_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    attend, reason = choose_attend(torch.device("cuda"), torch.float16, 64)
    assert attend is attend_sdpa
    assert "Triton" in reason


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_gets_compiled_attention(dtype: torch.dtype) -> None:
    attend, reason = choose_attend(CPU, dtype, 64)
    assert attend is compile_attention(dtype, 64)
    assert reason == "compiled for this CPU"


def test_what_cannot_be_compiled_is_computed_by_torch_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype, head_dim: int) -> object:
        raise CompilationError("cc failed: disk full")

    assert choose_attend(CPU, torch.float16, 64) == (attend_sdpa, "the C code does not read torch.float16")
    monkeypatch.setattr(attention_choice, "compile_attention", refuse)
    assert choose_attend(CPU, torch.float32, 64) == (attend_sdpa, "cc failed: disk full")
