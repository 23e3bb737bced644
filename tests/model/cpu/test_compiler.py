from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.model.cpu import compiler
from app.model.cpu.compiler import CompilationError, load_library
from tests.support.compiled import needs_compiler

pytestmark = needs_compiler


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "softswap"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return ANSWER; }")
    return path


def test_a_library_is_compiled_once_for_each_content_and_macro(cache: Path, source: Path) -> None:
    assert load_library([source], {"ANSWER": 42}).answer() == 42
    (kept,) = cache.iterdir()
    modified_ns = kept.stat().st_mtime_ns
    assert load_library([source], {"ANSWER": 42}).answer() == 42
    assert kept.stat().st_mtime_ns == modified_ns
    assert load_library([source], {"ANSWER": 43}).answer() == 43
    source.write_text("int answer(void) { return ANSWER + 1; }")
    assert load_library([source], {"ANSWER": 43}).answer() == 44
    assert len(list(cache.iterdir())) == 3


def test_many_may_compile_the_same_at_once(cache: Path, source: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        libraries = list(pool.map(lambda _: load_library([source], {"ANSWER": 7}), range(8)))
    assert [library.answer() for library in libraries] == [7] * 8
    assert len(list(cache.iterdir())) == 1


def test_a_source_that_does_not_compile_says_why_and_leaves_nothing(cache: Path, source: Path) -> None:
    source.write_text("int answer(void) { return nothing; }")
    with pytest.raises(CompilationError, match="nothing"):
        load_library([source], {})
    assert list(cache.iterdir()) == []


def test_a_machine_without_a_compiler_is_told_so(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CompilationError, match="no C compiler was found"):
        load_library([source], {"ANSWER": 1})


def test_a_folder_that_others_may_write_to_is_not_trusted(cache: Path, source: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(CompilationError, match="others can write"):
        load_library([source], {"ANSWER": 1})


def test_a_folder_that_is_a_link_is_not_trusted(cache: Path, source: Path, tmp_path: Path) -> None:
    cache.parent.mkdir()
    cache.symlink_to(tmp_path)
    with pytest.raises(CompilationError, match="others can write"):
        load_library([source], {"ANSWER": 1})


def test_a_user_without_a_home_folder_is_no_crash(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CompilationError, match="home directory"):
        load_library([source], {"ANSWER": 1})


def test_a_place_where_nothing_can_be_kept_is_no_crash(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    with pytest.raises(CompilationError, match="cannot be kept"):
        load_library([source], {"ANSWER": 1})


@pytest.mark.usefixtures("cache")
def test_a_library_that_is_no_library_is_no_crash(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_build", lambda _command, _source, library: library.write_bytes(b""))
    with pytest.raises(CompilationError, match="loaded"):
        load_library([source], {"ANSWER": 1})
