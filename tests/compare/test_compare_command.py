"""`softswap compare`, as a person or a script meets it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.entry import app
from app.compare import comparison
from app.errors import SoftswapError
from app.model.loading.checkpoint import fingerprint_files
from tests.support.comparison_setting import EXAMPLES
from tests.support.models import tiny_backbone

BUDGET = ("--max-steps", "2", "--batch-size", "8", "--virtual-tokens", "4", "--shots", "2", "--lora-rank", "2")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Examples, and the tiny backbone through the environment."""
    backbone = tiny_backbone()
    backbone.model.save_pretrained(tmp_path / "tiny")
    backbone.tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("SOFTSWAP_MODEL", str(tmp_path / "tiny"))
    rows = [f"{example.input},{example.target}" for example in EXAMPLES * 3]
    (tmp_path / "toy.csv").write_text("\n".join(["input,target", *rows]))
    return tmp_path / "toy.csv"


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["compare", *arguments])
    if isinstance(result.exception, SoftswapError):
        assert code == 1, result.exception.message
        return result.exception.message
    assert result.exit_code == code, result.output
    return result.stdout


def test_methods_run_in_processes_of_their_own_and_are_reported_whole(data: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib belongs to the extra `compare`")
    picture = data.parent / "toy.svg"
    chosen = ("--methods", "prefix_tuning,zero_shot", "--seeds", "0,1", "--plot", str(picture))
    said = json.loads(call(str(data), "--template", r"{input}\nA: {target}", *BUDGET, *chosen, "--json"))
    assert {"backbone", "setting", "memory_measure", "versions", "num_threads", "methods", "trials"} == said.keys()
    assert said["backbone"]["fingerprint"] == fingerprint_files(data.parent / "tiny")
    assert said["setting"]["template"] == "{input}\nA: {target}"
    assert said["setting"]["labels"] == ["no", "yes"]
    zero_shot, prefix = said["methods"]
    assert (zero_shot["method"], zero_shot["seeds"]) == ("zero_shot", [0])
    assert "Wilson" in zero_shot["interval"]["kind"]
    assert (prefix["method"], prefix["seeds"]) == ("prefix_tuning", [0, 1])
    assert prefix["interval"]["kind"] == "t over 2 seeds"
    assert prefix["interval"]["low"] <= prefix["value"] <= prefix["interval"]["high"]
    for field in ("num_parameters", "num_stored_bytes", "tuning_s", "latency_s"):
        assert prefix[field] > 0
    assert [trial["seed"] for trial in said["trials"]] == [0, 0, 1]
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_a_table_says_what_is_not_served(data: Path) -> None:
    pytest.importorskip("peft", reason="peft belongs to the extra `compare`")
    said = call(str(data), "--methods", "lora", "--seeds", "5", *BUDGET)
    (row,) = [line for line in said.splitlines() if "LoRA" in line]
    assert "not served here" in row
    assert "Wilson over" in row


def test_wrong_options_and_missing_extras_are_said_before_any_work(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--methods must be of zero_shot" in call(str(data), "--methods", "magic", code=1)
    assert "--seeds must be whole numbers" in call(str(data), "--seeds", "a", code=1)
    refused = CliRunner().invoke(app, ["compare", str(data), "--shots", "0"])
    assert (refused.exit_code, "'--shots'" in refused.output) == (2, True)
    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    with monkeypatch.context() as patch:
        patch.setenv("SOFTSWAP_QUANTIZE", "int8")
        assert "SOFTSWAP_QUANTIZE must be none here" in call(str(data), code=1)
    assert "pip install 'softswap[compare]'" in call(str(data), "--methods", "lora", code=1)
    assert "matplotlib is missing" in call(str(data), "--plot", str(data.parent / "x.svg"), code=1)
