"""What tests of commands share: a tiny checkpoint, a registry of its own, a running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.model.backbone import Backbone
from tests.support.models import tiny_backbone
from tests.support.server import LiveServer, make_settings, publish_tasks, run_server


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    backbone = tiny_backbone()
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(checkpoint: Path) -> Backbone:
    """The tiny backbone as it is after loading: its fingerprint is over files."""
    return Backbone.load(checkpoint)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), tiny_backbone()) as server:
        publish_tasks(server.registry, tiny_backbone())
        yield server


@pytest.fixture
def local(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own, and the tiny backbone, through the environment."""
    (tmp_path / "prompts").mkdir()
    monkeypatch.setenv("SOFTSWAP_MODEL", str(checkpoint))
    monkeypatch.setenv("SOFTSWAP_REGISTRY", str(tmp_path / "prompts"))
    return tmp_path
