from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch

from app.model import compiled_attention
from app.model.compiled_attention import compile_attention
from app.model.compiler import C_FOLDER, CompilationError
from tests.model.compiled import needs_compiler

RUNTIMES = """
import re
import sys

import torch

from app.model.compiled_attention import compile_attention


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
    wrong = copytree(C_FOLDER, tmp_path / "csrc") / "attend.c"
    wrong.write_text(wrong.read_text().replace("? num_seen - window", "? num_seen - window + 1"))
    monkeypatch.setattr(compiled_attention, "SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompilationError, match="computes something else"):
        compile_attention.__wrapped__(torch.float32, 12)
