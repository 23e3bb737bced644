from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.commands import call
from tests.support.server import soft_prompt


def test_doctor_finds_what_is_wrong(local: Path, saved: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry(FileStore(local / "prompts"), saved).publish("fine", Publication(soft_prompt(saved)))
    findings = [json.loads(line) for line in call("doctor", "--port", "0", "--json").splitlines()]
    assert {finding["name"] for finding in findings} >= {"python", "torch", "device", "memory", "backbone", "registry"}
    (attention,) = (finding["fact"] for finding in findings if finding["name"] == "attention")
    assert attention.startswith(("attend_compiled (compiled for", "attend_sdpa (no C compiler"))
    (layers,) = (finding["fact"] for finding in findings if finding["name"] == "layers")
    assert "layers compiled (" in layers or layers.startswith("torch's own (")
    assert all(finding["is_fine"] for finding in findings)
    assert "with weights in int8" in call("doctor", "--port", "0", "--quantize", "int8")
    with monkeypatch.context() as patch:
        patch.setenv("SOFTSWAP_ATTENTION", "sdpa")
        assert "attend_sdpa (as told)" in call("doctor", "--port", "0")

    file = local / "prompts" / "fine" / "1" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "fine" in call("doctor", "--port", "0", code=1)
