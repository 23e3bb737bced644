from __future__ import annotations

import pytest
import torch

from app.model.attention import attend_sdpa
from app.model.cpu import kernels as cpu_kernels
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import CompilationError
from app.model.cuda.kernels import BLOCK_MULTIPLE, attend_varlen, can_varlen, has_paged_varlen
from app.model.kernels import Kernels, kernels_for
from tests.support.compiled import needs_compiler
from tests.support.models import tiny_backbone

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
    attend, _ = kernels_for(place).choose_attend(dtype, head_dim)
    assert kernels_for(place).block_multiple(dtype, head_dim) == (BLOCK_MULTIPLE if attend is attend_varlen else 1)
    assert (attend is attend_varlen) is (is_flash and has_paged_varlen())
    assert device == "cpu" or attend in {attend_varlen, attend_sdpa}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernel runs, and is chosen")
def test_a_device_on_which_neither_kernel_runs_gets_the_slower_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    attend, reason = kernels_for(torch.device("cuda")).choose_attend(torch.float16, 64)
    assert attend is attend_sdpa
    assert "Triton" in reason


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_gets_compiled_attention(dtype: torch.dtype) -> None:
    attend, reason = kernels_for(CPU).choose_attend(dtype, 64)
    assert attend is compile_attention(dtype, 64)
    assert reason == "compiled for this CPU"


def test_what_cannot_be_compiled_is_computed_by_torch_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dtype: torch.dtype, head_dim: int) -> object:
        raise CompilationError("cc failed: disk full")

    assert kernels_for(CPU).choose_attend(torch.float16, 64) == (attend_sdpa, "the C code does not read torch.float16")
    monkeypatch.setattr(cpu_kernels, "compile_attention", refuse)
    assert kernels_for(CPU).choose_attend(torch.float32, 64) == (attend_sdpa, "cc failed: disk full")


def test_a_device_without_kernels_gets_torchs_own() -> None:
    plain: Kernels = kernels_for(torch.device("mps"))
    model = tiny_backbone().model

    def compute(num_rows: int) -> None:
        pass

    assert plain.choose_attend(torch.float32, 64)[0] is attend_sdpa
    assert not plain.choose_replacements(model, tiny_backbone().kv_shape, attend_sdpa)[0].module_to_forward
    assert plain.block_multiple(torch.float32, 64) == 1
    assert plain.capture(compute, [1, 2]) is compute
