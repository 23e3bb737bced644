from __future__ import annotations

import logging
import platform
from collections.abc import Iterator

import pytest

from app.engine.config import EngineConfig
from app.engine.model_runner import ModelRunner
from app.model.attention import attend_sdpa
from app.model.cpu import compiler, kernels
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiled_layer import compile_layer
from app.model.cpu.compiled_linear import compile_multiply
from app.model.cpu.compiler import CompilationError
from app.model.cpu.kernels import CpuKernels
from tests.support.compiled import needs_compiler
from tests.support.models import tiny_backbone


def choose(architecture: str = "llama", *, with_attention: bool = True) -> tuple[list[str], str]:
    """The classes that are replaced, and why."""
    backbone = tiny_backbone(architecture)
    cpu = CpuKernels()
    attend = cpu.choose_attend(backbone.dtype, backbone.kv_shape.head_dim)[0] if with_attention else attend_sdpa
    chosen, reason = cpu.choose_replacements(backbone.model, backbone.kv_shape, attend)
    return sorted({type(module).__name__ for module in chosen.module_to_forward}), reason


@needs_compiler
@pytest.mark.parametrize(("ratio", "wanted"), [(1.5, ["Linear", "LlamaDecoderLayer"]), (0.9, [])])
def test_the_faster_way_is_chosen(ratio: float, wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_ratio", lambda _: ratio)
    replaced, reason = choose()
    assert replaced == wanted
    assert f"{ratio:.2f} times" in reason


@needs_compiler
def test_layers_with_another_attention_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_ratio", lambda _: 2.0)
    assert choose(with_attention=False)[0] == ["Linear"]


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_both_ways_are_measured(architecture: str) -> None:
    assert "times as fast as torch's own" in choose(architecture)[1]


def test_without_a_compiler_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_linears(_: object) -> None:
        raise CompilationError("no C compiler was found")

    monkeypatch.setattr(kernels, "compile_linears", compile_linears)
    assert choose() == ([], "torch's own (no C compiler was found)")


@pytest.fixture(params=["arm", "old x86"])
def other_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A CPU that the C code is not for; what was compiled for this one is forgotten. Gives how it is named."""
    caches = (compile_attention, compile_layer, compile_multiply)
    if request.param == "arm":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    else:
        monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-mno-avx2"))
    for each in caches:
        each.cache_clear()
    yield "is aarch64" if request.param == "arm" else "has no AVX2"
    for each in caches:
        each.cache_clear()


@needs_compiler
def test_a_cpu_that_the_c_code_is_not_for_computes_with_torch_and_the_log_says_so(
    other_cpu: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason = f"the C code is for x86 CPUs with AVX2, and this one {other_cpu}"
    backbone = tiny_backbone()
    with caplog.at_level(logging.INFO):
        runner = ModelRunner(backbone, EngineConfig.sized_for(backbone, kv_cache_bytes=2**20))
    assert runner.attend is attend_sdpa
    said = [record.getMessage() for record in caplog.records]
    assert f"attention: attend_sdpa on cpu in torch.float32 ({reason})" in said
    assert f"layers: torch's own ({reason})" in said
