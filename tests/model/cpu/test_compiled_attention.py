from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch

from app.model.attention import AttentionBatch, attend_sdpa
from app.model.cpu import compiled_attention
from app.model.cpu.compiled_attention import compile_attention
from app.model.cpu.compiler import C_FOLDER, CompilationError
from app.model.kv_cache import KVCache, KVShape
from tests.support.compiled import needs_compiler

RUNTIMES = """
import re
import sys

import torch

from app.model.cpu.compiled_attention import compile_attention


def runtimes():
    return {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(gomp|omp|iomp5)[-.]", line)}


torch.ones(512, 512) @ torch.ones(512, 512)
before = runtimes()
compile_attention(torch.float32, 16)
sys.exit(0 if len(before) == 1 and runtimes() == before else f"{before} became {runtimes()}")
"""


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_no_second_openmp_runtime_comes_into_the_process() -> None:
    finished = subprocess.run([sys.executable, "-c", RUNTIMES], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@needs_compiler
def test_code_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = copytree(C_FOLDER, tmp_path / C_FOLDER.name) / "attend.c"
    wrong.write_text(wrong.read_text().replace("? num_seen - window", "? num_seen - window + 1"))
    monkeypatch.setattr(compiled_attention, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompilationError, match="computes something else"):
        compile_attention.__wrapped__(torch.float32, 12)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("num_shared", [1, 2, 3, 4, 5, 8])
def test_any_number_of_query_heads_shares_keys_and_values(dtype: torch.dtype, head_dim: int, num_shared: int) -> None:
    """Some of them are added up together, as many as there are registers for."""
    attend = compile_attention(dtype, head_dim)
    cache = KVCache(KVShape(1, 2, head_dim), num_blocks=25, block_size=16, dtype=dtype, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(num_shared)
    cache.blocks.copy_(torch.randn(cache.blocks.shape, generator=generator))
    query_lens, kv_lens = [1, 1, 5, 47], [1, 33, 90, 47]
    query = torch.randn(sum(query_lens), 2 * num_shared, head_dim, generator=generator).to(dtype)
    batches = [
        AttentionBatch(
            kv_cache=cache,
            attend=each,
            slots=torch.zeros(sum(query_lens), dtype=torch.int64),
            query_lens=query_lens,
            kv_lens=kv_lens,
            block_tables=torch.arange(1, 25, dtype=torch.int32).view(4, 6),
            copies=[],
        )
        for each in (attend, attend_sdpa)
    ]
    for window in (None, 20):
        found, wanted = (
            batch.attend(query, *cache.layers[0], batch, head_dim**-0.5, window).float() for batch in batches
        )
        torch.testing.assert_close(found, wanted, **({} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}))
