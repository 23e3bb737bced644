from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.commands import call
from tests.support.gguf_files import build_model, write_gguf


def test_a_task_of_a_gguf_file_is_its_task_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", build_model("llama"))
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf")
    write_gguf(tmp_path / "other.gguf", build_model("llama", rms_norm_eps=1e-3))
    (tmp_path / "prompts").mkdir()
    monkeypatch.setenv("SOFTSWAP_REGISTRY", str(tmp_path / "prompts"))
    monkeypatch.setenv("SOFTSWAP_MODEL", str(tmp_path / "tiny.gguf"))
    assert "greet@1 published" in call("tasks", "add", "--text", "The tax on fuel", "--task", "greet")
    said = call("run", "greet", " and 12", "--max-tokens", "5")
    assert said == call("run", "greet", " and 12", "--max-tokens", "5", "--model", str(tmp_path / "copy.gguf"))
    refused = call("run", "greet", "x", "--model", str(tmp_path / "other.gguf"), code=1)
    assert "task greet has no version for other" in refused
