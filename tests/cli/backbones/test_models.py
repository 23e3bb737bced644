from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from app.cli.backbones import models as cli_models
from app.settings import DEFAULT_MODEL, DEMO_BACKBONE
from tests.support.commands import call
from tests.support.models import tiny_backbone


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with a language model, one of another kind, and one without weights."""
    for name, architecture in (("tiny", "LlamaForCausalLM"), ("vision", "ViTForImageClassification"), ("empty", "")):
        repository = tmp_path / "hub" / f"models--owner--{name}"
        snapshot = repository / "snapshots" / ("a" * 40)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        tiny_backbone().model.save_pretrained(snapshot)
        (snapshot / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SOFTSWAP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def listed() -> dict[str, dict[str, object]]:
    found = [json.loads(line) for line in call("models", "--device", "cpu", "--json").splitlines()]
    return {model["name"]: model for model in found}


def test_the_catalog_and_the_hubs_cache_are_listed_with_what_they_take(hub: Path) -> None:
    found = listed()
    assert list(found) == ["demo", "smollm2-135m-instruct", "owner/tiny"]
    demo, smollm2, tiny = found.values()
    assert (demo["kind"], demo["is_here"], demo["path"]) == ("catalog", True, str(DEMO_BACKBONE))
    assert demo["num_bytes"] == sum(file.stat().st_size for file in DEMO_BACKBONE.iterdir())
    assert demo["num_parameters"] == 4_000_000
    assert (smollm2["is_here"], smollm2["num_bytes"]) == (False, None)
    assert smollm2["memory_bytes"] == {"float32": 4 * 134_515_008, "bfloat16": 2 * 134_515_008}
    assert (tiny["kind"], tiny["is_here"]) == ("hub", True)
    parameters = tiny_backbone().model.num_parameters()
    assert (tiny["num_parameters"], tiny["memory_bytes"]["float32"]) == (parameters, 4 * parameters)
    (hub / "cache").mkdir()
    (hub / "cache" / "smollm2-135m-instruct.gguf").write_bytes(bytes(1000))
    assert listed()["smollm2-135m-instruct"]["num_bytes"] == 1000


def test_what_does_not_fit_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_models, "machine_memory", lambda: 400_000_000)
    assert listed()["smollm2-135m-instruct"]["fits"] == {"float32": False, "bfloat16": True}
    monkeypatch.setattr(cli_models, "machine_memory", lambda: 699_478_042)  # 1.3 times its size
    assert listed()["smollm2-135m-instruct"]["fits"]["float32"] is True


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("123456789\n")
    monkeypatch.setattr(cli_models, "CGROUP_LIMITS", (tmp_path / "max", tmp_path / "none"))
    whole = cli_models.machine_memory()
    monkeypatch.setattr(cli_models, "CGROUP_LIMITS", (tmp_path / "limit",))
    assert cli_models.machine_memory() == 123_456_789 < whole


def test_a_person_sees_a_table(hub: Path) -> None:
    lines = call("models", "--device", "cpu").splitlines()
    assert lines[0].split() == [
        "model",
        "parameters",
        "here",
        "on",
        "disk",
        "in",
        "float32",
        "fits",
        "in",
        "bfloat16",
        "fits",
    ]
    assert "135 M" in lines[2]
    assert any(line.startswith(f"{DEFAULT_MODEL} *") for line in lines)
    assert "GiB. * is served if none is named." in lines[-1]
