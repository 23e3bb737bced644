from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.entry import main
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


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_stray_target_is_told_with_file_line_and_value(
    local: Path,
    saved: Backbone,
    live: LiveServer,
    is_remote: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "test.csv"
    data.write_text("text,label\na,positive\nb,neutral and so on " + "x" * 100 + "\n")
    where = ["--url", live.url] if is_remote else []
    monkeypatch.setattr("sys.argv", ["softswap", "eval", "sentiment", str(data), *where])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("softswap: test.csv, line 3: the target ")
    assert said.endswith(": 'neutral and so on " + "x" * 39 + "...'")


def test_what_was_guessed_of_a_file_is_said(local: Path, saved: Backbone) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "test.txt"
    data.write_text("v1;v2\n" + "".join(f"{('negative', 'positive')[n % 2]};film {n}\n" for n in range(20)))
    said = call("eval", "sentiment", str(data), "--json")
    assert "test.txt: 20 rows of CSV separated by semicolons; using v2 as input, v1 as target (guessed by" in said
    assert "name other fields with --input-field and --target-field" in said
