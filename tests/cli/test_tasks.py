from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.formats.binding import bind_rows
from app.registry.kept.evaluations import RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.settings import demo_tasks
from app.task_prompt import PromptKind
from tests.support.commands import call
from tests.support.models import tiny_backbone
from tests.support.prompts import random_rows, write_checkpoint
from tests.support.server import LABELS, REVIEW, LiveServer, publish_tasks, soft_prompt


def test_without_a_registry_one_changes_a_folder_of_ones_own_and_not_the_demo_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOFTSWAP_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    before = {path: path.read_bytes() for path in demo_tasks().rglob("*.json") if ".state" not in path.parts}
    assert "sentiment" in call("tasks", "ls")
    call("tasks", "alias", "sentiment", "canary", "1")
    call("tasks", "rm", "entities", "--yes")
    assert {path.name for path in (tmp_path / "softswap" / "prompts").glob("[a-z]*")} == {"sentiment", "entities"}
    listed = [json.loads(line) for line in call("tasks", "ls", "--json").splitlines()]
    names = {task["id"]: task["aliases"] for task in listed}
    assert "entities" not in names
    assert names["sentiment"] == {"live": 1, "canary": 1}
    assert names["headline"] == {"live": 1}
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "entities" in call("tasks", "ls", "--registry", str(demo_tasks()))


def test_an_alias_moves_behind_a_gate(local: Path, saved: Backbone) -> None:
    """On these examples, each there with both labels, every version scores 0.5; version 1 is said to have 0.9."""
    registry = Registry(FileStore(local / "prompts"), saved)
    publish_tasks(registry, saved)
    data = local / "gate.jsonl"
    rows = [{"input": f"film {n}", "target": label} for n in range(12) for label in LABELS]
    data.write_text("\n".join(map(json.dumps, rows)))
    call("tasks", "alias", "sentiment", "live", "1", "--gate", str(data), "--metric", "accuracy")
    registry.refresh()
    first = registry.resolve("sentiment@1")
    gate = registry.task("sentiment").gates.get("live")
    registry.record_evaluation(
        first, RecordedEvaluation(digest=first.digest, data_sha256=gate.data_sha256, metrics={"accuracy": 0.9})
    )

    assert "version 2 has accuracy 0.5000" in call("tasks", "alias", "sentiment", "live", "2", code=1)
    said = call("tune", str(data), "--task", "sentiment", "--max-steps", "1", "--labels", "negative,positive")
    assert "live stays where it is: version 3 has accuracy 0.5000" in said
    assert "sentiment@3 published" in said
    call("tasks", "alias", "sentiment", "live", "2", "--force")
    call("tasks", "alias", "sentiment", "live", "3")
    shown = json.loads(call("tasks", "show", "sentiment", "--json"))
    assert (shown["aliases"]["live"], shown["gates"]["live"]["metric"]) == (3, "accuracy")
    call("tasks", "alias", "sentiment", "live", "1", "--no-gate")
    assert json.loads(call("tasks", "show", "sentiment", "--json"))["gates"] == {}
    call("tasks", "alias", "sentiment", "live", "3", "--metric", "accuracy", code=2)
    call("eval", "sentiment@3", str(data), "--record")
    registry.refresh()
    [kept] = registry.evaluations.of_version(registry.resolve("sentiment@3"))
    assert (kept.data_name, kept.metrics["accuracy"]) == ("gate.jsonl", 0.5)


def test_a_task_on_two_backbones_is_listed_shown_and_moved_for_each(local: Path, saved: Backbone) -> None:
    """Nothing of it loads a model, but for the gate."""
    other = tiny_backbone("qwen2")
    store = FileStore(local / "prompts")
    for backbone in (saved, other, saved):
        publication = Publication(soft_prompt(backbone), template=Template(REVIEW), labels=LABELS)
        Registry(store, backbone).publish("mood", publication)
    call("tasks", "alias", "mood", "live", "1")
    call("tasks", "alias", "mood", "canary", "1=0.9,3=0.1")
    call("tasks", "alias", "mood", "best", "2")
    assert "the same backbone" in call("tasks", "alias", "mood", "live", "1=0.5,2=0.5", code=1)
    lines = [line.split() for line in call("tasks", "ls").splitlines()]
    assert lines[1] == ["mood", "1", "2", "embeddings", "7", "2", "tiny", "canary", "1=0.9,3=0.1"]
    assert lines[2] == ["mood", "2", "1", "embeddings", "7", "2", "tiny-qwen2", "best", "2"]
    shown = call("tasks", "show", "mood")
    assert re.search(r"^tiny +live 1, canary 1=0\.9,3=0\.1$", shown, re.MULTILINE)
    assert re.search(r"^tiny-qwen2 +live 2, best 2$", shown, re.MULTILINE)
    assert re.search(r"^  mood@2 .* tiny-qwen2 +embeddings", shown, re.MULTILINE)
    listed = json.loads(call("tasks", "ls", "--json"))
    assert (listed["live"], listed["aliases"], listed["num_versions"], listed["missing"]) == (None, {}, 3, None)
    assert [each["aliases"]["live"] for each in listed["backbones"]] == [1, 2]
    assert json.loads(call("tasks", "show", "mood@2", "--json"))["backbone_name"] == "tiny-qwen2"
    assert "mood@live means mood@1 for tiny and mood@2 for tiny-qwen2" in call("tasks", "show", "mood@live", code=1)
    data = local / "gate.jsonl"
    data.write_text("\n".join(json.dumps({"input": f"film {n}", "target": LABELS[n % 2]}) for n in range(4)))
    said = call("tasks", "alias", "mood", "live", "2", "--gate", str(data), code=1)
    assert said.startswith("the gate compares versions for tiny-qwen2, and cannot with tiny;")
    call("tasks", "alias", "mood", "live", "3", "--gate", str(data))
    call("tasks", "rm", "mood@2", code=1)
    call("tasks", "rm", "mood@best")
    call("tasks", "rm", "mood@live")
    call("tasks", "rm", "mood@2")
    assert "tiny-qwen2" not in call("tasks", "show", "mood")


def test_virtual_tokens_are_shown_here_as_on_a_server(local: Path, saved: Backbone, live: LiveServer) -> None:
    publish_tasks(Registry(FileStore(local / "prompts"), saved), saved)
    data = local / "data.jsonl"
    data.write_text("\n".join(json.dumps({"input": f"film {n}", "target": LABELS[n % 2]}) for n in range(6)))
    asked = ("tasks", "show", "sentiment@1", "--tokens", "--compare", "sentiment@2", "--data", str(data))
    here, there = local / "here.svg", local / "there.svg"
    seen = json.loads(call(*asked, "--nearest", "2", "--json", "--plot", str(here)))
    said = json.loads(call(*asked, "--nearest", "2", "--json", "--plot", str(there), "--url", live.url))
    assert [len(token["by_cosine"]) for token in seen["virtual_tokens"]] == [2] * 7
    assert seen["difference"]["rows"] == said["difference"]["rows"]
    losses = [[effect["loss"] for effect in each["effects"]["without"]] for each in (seen, said)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert here.read_text()[:5] == there.read_text()[:5] == "<?xml"
    shown = call(*asked)
    for words in (
        "7 virtual tokens",
        "near tokens",
        "distance to sentiment@2",
        "Δ loss",
        "near-duplicates",
        "Khashabi",
    ):
        assert words in shown
    call("tasks", "show", "sentiment", "--plot", "x.svg", code=2)


def test_a_written_prompt_is_a_task_too(local: Path) -> None:
    call("tasks", "add", "--task", "greet", "--text", r"Say hi.\n", "--template", r"{input}\nHi: {target}")
    shown = json.loads(call("tasks", "show", "greet@1", "--json"))
    assert (shown["kind"], shown["template"]) == ("text", "{input}\nHi: {target}")
    assert len(call("run", "greet", "you", "--max-tokens", "4", "--json").splitlines()) == 1
    call("tasks", "add", "--task", "greet", code=2)
    call("tasks", "add", "nowhere", "--task", "greet", code=1)


def test_one_task_of_a_multitask_checkpoint_is_added_here_as_on_a_server(
    local: Path, saved: Backbone, live: LiveServer
) -> None:
    rows = 0.1 * random_rows(saved)  # as long as the vocabulary's, or a warning is printed
    write_checkpoint(local / "many", bind_rows(rows, PromptKind.EMBEDDINGS, saved), saved)
    config = json.loads((local / "many" / "adapter_config.json").read_text())
    config |= {"peft_type": "MULTITASK_PROMPT_TUNING"}
    (local / "many" / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"prompt_embeddings": rows, "prefix_task_cols": torch.ones(2, 5, 1)}
    tensors["prefix_task_rows"] = torch.stack([torch.ones(1, 32), torch.full((1, 32), 2.0)])
    save_file(tensors, local / "many" / "adapter_model.safetensors")
    add = ("tasks", "add", str(local / "many"), "--task", "chosen")
    for place, backbone in (((), saved), (("--url", live.url), live.backbone)):
        shown = json.loads(call(*add, "--source-task", "1", "--json", *place))
        assert shown["digest"] == bind_rows(2 * rows, PromptKind.EMBEDDINGS, backbone).digest
        assert shown["provenance"]["source_task"] == 1
        assert "say which with source_task, from 0 to 1" in call(*add, *place, code=1)
    call("tasks", "add", "--text", "hi", "--source-task", "1", "--task", "chosen", code=2)


def test_an_exported_prompt_of_another_backbone_is_refused_by_that_ones_name(
    local: Path, saved: Backbone, live: LiveServer
) -> None:
    """Also where the width of its rows would fit."""
    other = tiny_backbone("qwen2")
    assert other.hidden_size == saved.hidden_size
    registry = Registry(FileStore(local / "others"), other)
    registry.publish("mood", Publication(soft_prompt(other)))
    call("tasks", "export", "mood", str(local / "exported"), "--registry", str(local / "others"))
    for path in (local / "exported", local / "exported" / "adapter_model.safetensors"):
        for place in ((), ("--url", live.url)):
            said = call("tasks", "add", str(path), "--task", "mood", *place, code=1)
            assert re.fullmatch(rf"{path} was made for tiny-qwen2 \([0-9a-f]{{12}}\), not for tiny(-llama)?", said)
    (local / "exported" / "task.json").unlink()
    assert "mood@1 published" in call("tasks", "add", str(local / "exported"), "--task", "mood")
