from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.commands import call
from tests.support.server import LiveServer, publish_tasks


def test_a_task_is_measured_here_as_on_a_server(
    local: Path, saved: Backbone, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "test.csv"
    data.write_text("text,label\n" + "".join(f"film {n},{('negative', 'positive')[n % 2]}\n" for n in range(20)))
    here = json.loads(call("eval", "sentiment", str(data), "--json", "--predictions"))
    there = json.loads(call("eval", "sentiment", str(data), "--json", "--predictions", "--url", live.url))
    assert here["model"] == there["model"] == "sentiment@2"
    assert here.pop("metrics") == pytest.approx(there.pop("metrics"), abs=1e-4)
    assert (here["confusion"], here["predictions"]) == (there["confusion"], there["predictions"])
    shown = call("eval", "sentiment@1", str(data))
    for words in ("sentiment@1 on test.csv: 20 examples", "accuracy", "95 %", "precision", "calibration"):
        assert words in shown
    data.write_text("text,label\na,neutral\n")
    assert "test.csv, line 2: the target is none of the 2 labels" in call("eval", "sentiment", str(data), code=1)
