from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from app.cli.run import _show
from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.commands import call
from tests.support.models import tiny_backbone
from tests.support.server import LABELS, LiveServer, publish_tasks, soft_prompt


def test_an_ensemble_answers_and_is_measured_here_as_on_a_server(
    local: Path, saved: Backbone, live: LiveServer
) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    for combine in ("average", "vote"):
        asked = ("run", "sentiment@1+2", "a film", "--json", "--combine", combine)
        here, there = json.loads(call(*asked)), json.loads(call(*asked, "--url", live.url))
        assert here["model"] == there["model"] == "sentiment@1+2"
        assert here["label"] == there["label"]
        assert here["probabilities"] == pytest.approx(there["probabilities"], abs=1e-5)
    data = local / "test.csv"
    data.write_text("text,label\n" + "".join(f"film {n},{LABELS[n % 2]}\n" for n in range(20)))
    asked = ("eval", "sentiment@1+2", str(data), "--json", "--combine", "vote")
    here, there = json.loads(call(*asked)), json.loads(call(*asked, "--url", live.url))
    assert here["metrics"] == pytest.approx(there["metrics"], abs=1e-4)
    assert "sentiment@1+2 on test.csv" in call("eval", "sentiment@1+2", str(data), "--combine", "vote")
    assert "belongs to an ensemble" in call("eval", "sentiment", str(data), "--combine", "vote", code=1)
    assert "an ensemble" in call("eval", "sentiment@1+2", str(data), "--record", code=1)


def test_a_running_server_is_asked_with_url(live: LiveServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTSWAP_URL", f"{live.url}/v1")
    assert call("run", "sentiment", "a film").strip() in ("negative", "positive")
    assert len(call("run", "headline", "--json", stdin="a\nb\nc\n").splitlines()) == 3
    streamed = call("run", "headline", "hello")
    assert streamed.strip() == json.loads(call("run", "headline", "hello", "--json"))["text"]
    assert [json.loads(line)["id"] for line in call("tasks", "ls", "--json").splitlines()] == [
        "headline",
        "raw",
        "sentiment",
    ]
    assert json.loads(call("tasks", "show", "sentiment@1", "--json"))["number"] == 1
    assert json.loads(call("run", "headline+raw@1", "hello", "--json"))["text"] in {
        json.loads(call("run", task, "hello", "--json"))["text"] for task in ("headline", "raw")
    }
    safetensors.torch.save_file(
        {"prompt_embeddings": soft_prompt(tiny_backbone()).rows}, tmp_path / "adapter_model.safetensors"
    )
    assert "sent@1 published" in call("tasks", "add", str(tmp_path), "--task", "sent", "--labels", "a,b")
    call("tasks", "alias", "sent", "canary", "1")
    call("tasks", "rm", "sent@canary")
    call("tasks", "rm", "sent", "--yes")
    assert call("run", "sent", "x", code=1).startswith("there is no task sent; is it sentiment?")


def test_what_is_for_this_machine_is_refused_where_the_environment_names_a_server(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTSWAP_URL", live.url)
    monkeypatch.setenv("SOFTSWAP_MODEL", "a model that the server does not need")
    assert call("run", "sentiment", "a film").strip() in LABELS
    said = call("run", "sentiment", "a film", "--model", "y", code=1)
    assert said == "--model is for work on this machine, and SOFTSWAP_URL names a server"


def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    message = call("run", "sentiment", "x", "--url", "http://127.0.0.1:9", code=1)
    assert message.startswith("no answer from http://127.0.0.1:9")
    assert "http://" in call("run", "sentiment", "x", "--url", "ftp://x", code=1)


def test_a_text_on_one_line_keeps_the_separators_that_end_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    _show({"text": "a\u2028b\x85c\r\nd\ne"}, as_json=False, is_line=True)
    assert capsys.readouterr().out == "a\u2028b\x85c d e\n"
