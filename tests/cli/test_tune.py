from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from app.measure.evaluation import Evaluation, Measurement
from tests.support.commands import call


def test_what_could_not_be_published_is_not_tuned(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.tuning.run.run.tune_task", None)
    data = local / "data.jsonl"
    data.write_text(
        "\n".join(json.dumps({"input": f"good {n}", "target": "no" if n % 2 else "yes"}) for n in range(40))
    )
    assert "a task's name has" in call("tune", str(data), "--task", "Liked", code=1)
    assert "an alias has" in call("tune", str(data), "--task", "liked", "--alias", "LIVE", code=1)
    backbone = Path(os.environ["SOFTSWAP_MODEL"]).name
    assert "backbone's own name" in call("tune", str(data), "--task", backbone, code=1)
    no_folder = call("tune", str(data), "--task", "liked", "--registry", str(data / "prompts"), code=1)
    assert no_folder.startswith(f"there is no folder {data} to make prompts in")
    assert "a task's name has" in call("distill", str(data), "--prompt", str(data), "--task", "Liked", code=1)


def test_a_version_that_does_worse_than_the_live_one_is_published_and_not_moved_to(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one update answers are still mistaken; the live version's are said to be right, all of them."""
    data = local / "data.jsonl"
    rows = [{"input": f"{'good' if n % 2 else 'bad'} {n}", "target": "yes" if n % 2 else "no"} for n in range(60)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    tune = ("tune", str(data), "--task", "liked", "--max-steps", "1", "--virtual-tokens", "2", "--seed", "1")
    call(*tune[:-1], "0")

    def answer_right(_: object, asked: Measurement) -> Evaluation:
        return Evaluation.of_labels(asked.targets, asked.served.labels, asked.targets)

    monkeypatch.setattr("app.measure.plain_model.measure", answer_right)
    said = call(*tune)
    assert re.search(
        r"live stays at liked@1: liked@2 has accuracy 0\.\d+ and liked@1 1\.000 on the same \d+ examples", said
    )
    assert "`softswap tasks alias liked live 2 --force` moves it all the same" in said
    last = json.loads(call(*tune, "--json").splitlines()[-1])
    assert (last["id"], last["is_moved"], last["comparison"]["other"]) == ("liked@3", False, "liked@1")
    assert json.loads(call("tasks", "ls", "--json"))["aliases"] == {"live": 1}
    assert "live moves from liked@1 to liked@4: " in call(*tune, "--promote")
    assert json.loads(call("tasks", "ls", "--json"))["aliases"] == {"live": 4}
    assert "live" not in call(*tune, "--alias", "canary")


def test_a_task_is_tuned_used_moved_exported_and_removed(local: Path) -> None:
    data = local / "data.jsonl"
    rows = [{"input": f"{'good' if n % 2 else 'bad'} {n}", "target": "yes" if n % 2 else "no"} for n in range(120)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    said = call("tune", str(data), "--task", "liked", "--max-steps", "3", "--virtual-tokens", "2", "--epochs", "1")
    assert "liked@1 published: validation accuracy" in said
    assert not (local / "prompts" / "liked" / "examples").exists()
    assert "--kind must be" in call("tune", str(data), "--task", "liked", "--kind", "text", code=1)
    keys_and_values = ("--kind", "kv", "--max-steps", "2", "--virtual-tokens", "2", "--promote", "--keep-examples")
    events = call("tune", str(data), "--task", "liked", *keys_and_values, "--json")
    *progress, last = [json.loads(line) for line in events.splitlines() if line.startswith("{")]
    assert last["id"] == "liked@2"
    [kept] = (local / "prompts" / "liked" / "examples").iterdir()
    assert sorted(map(json.loads, kept.read_text().splitlines())) == sorted(list(row.values()) for row in rows)
    assert {event["event"] for event in progress} >= {"TuningStarted", "StepDone", "Evaluated"}

    assert call("run", "liked", "good 5").strip() in ("yes", "no")
    lines = call("run", "liked@1", "--json", stdin="good 5\nbad 6\n").splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["liked@1", "liked@1"]

    shown = json.loads(call("tasks", "show", "liked", "--json"))
    assert (shown["live"]["id"], [each["number"] for each in shown["versions"]]) == ("liked@2", [1, 2])
    assert shown["live"]["labels"] == ["no", "yes"]
    assert call("tasks", "alias", "liked", "live", "1") == "liked@live is 1\n"
    assert call("tasks", "alias", "liked", "canary", "1=0.5,2=0.5")
    assert json.loads(call("tasks", "ls", "--json"))["aliases"] == {"live": 1, "canary": {"1": 0.5, "2": 0.5}}
    assert re.search(
        r"^liked +1 +2 +embeddings +2 +2 +validation accuracy \d\.\d{3} \[", call("tasks", "ls"), re.MULTILINE
    )
    assert re.search(r"^  liked@2 .* kv +validation accuracy \d", call("tasks", "show", "liked"), re.MULTILINE)
    assert re.search(r"^labels +no, yes$", call("tasks", "show", "liked@1"), re.MULTILINE)

    call("tasks", "export", "liked@2", str(local / "exported"))
    assert (local / "exported" / "adapter_model.safetensors").is_file()
    call("tasks", "export", "liked@2", str(local / "exported"), code=1)
    assert shown["live"]["kind"] == "kv"
    again = call("tasks", "add", str(local / "exported"), "--task", "copied", "--labels", "no,yes")
    assert "copied@1 published: 2 virtual tokens" in again

    call("tasks", "rm", "liked@canary")
    call("tasks", "rm", "liked@2")
    call("tasks", "rm", "liked", "--yes")
    assert "liked" in call("tasks", "show", "liked", code=1)


def test_what_the_data_hold_is_said_first_and_their_columns_make_the_template(local: Path) -> None:
    rows = [f"{n};{('good', 'bad')[n % 2]} thing {n};{('yes', 'no')[n % 2]}" for n in range(60)]
    (local / "data.txt").write_text("\n".join(["nr;message;category", *rows, "60;a bad thing;noo"]))
    asked = ("tune", str(local / "data.txt"), "--task", "liked", "--max-steps", "1", "--virtual-tokens", "2")
    said = call(*asked)
    lines = [
        "data.txt: 61 rows of CSV separated by semicolons; using message as input, category as target (by their names)",
        "2 labels: no (30), yes (30)",
        "data.txt: 1 row is set aside: line 62 (its target occurs only once, and 'no' seems to be meant: 'noo')",
        "warning: all labels together have a probability of 0.0",
        "liked@1 published: validation accuracy",
    ]
    places = [said.index(line) for line in lines]
    assert places == sorted(places)
    first, *_ = [json.loads(line) for line in call(*asked, "--json").splitlines() if line.startswith("{")]
    assert first["event"] == "DataRead"
    assert first["labels"] == {"no": 30, "yes": 30}
    shown = json.loads(call("tasks", "show", "liked@1", "--json"))
    assert shown["template"] == "Message: {input}\nCategory: {target}"


def test_limits_of_lengths_are_options(local: Path) -> None:
    rows = [json.dumps({"input": f"text {n} " + "x" * 50, "target": ("yes", "no")[n % 2]}) for n in range(40)]
    (local / "data.jsonl").write_text("\n".join(rows))
    asked = ("tune", str(local / "data.jsonl"), "--task", "liked", "--max-steps", "1", "--virtual-tokens", "2")
    said = call(*asked, "--max-input-tokens", "12")
    assert "warning: 40 of 40 texts are longer than 12 tokens and lose their end" in said
    assert json.loads(call("tasks", "show", "liked@1", "--json"))["max_input_tokens"] == 12
    refused = call(*asked, "--max-target-tokens", "2", code=1)
    assert refused == "the target of data.jsonl, line 1 is longer than 2 tokens"
