"""`softswap tasks prune`, here and on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.cli.pruning import prune
from app.jobs.job import JobStatus
from app.jobs.job_store import JobStores
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.settings import demo_tasks
from app.telemetry import Metrics
from tests.support.commands import call
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt
from tests.support.server import LiveServer, make_settings, run_server

SPEC = {"task": "other", "model": "tiny", "method": {"type": "supervised"}}


@pytest.fixture
def registry(local: Path, saved: Backbone) -> Registry:
    """Task mood: 1 to 4, of which 4 is live and 1 is canary; task joy: 1 and 2, of which 2 is live."""
    registry = Registry(FileStore(local / "prompts"), saved)
    for task, num_versions in (("mood", 4), ("joy", 2)):
        for seed in range(num_versions):
            registry.publish(task, Publication(random_prompt(saved, seed=seed)))
    registry.set_alias("mood", "canary", 1)
    return registry


@contextmanager
def held_jobs(local: Path) -> Iterator[JobStores]:
    """As a running server holds them."""
    stores = JobStores(local / "prompts" / ".state", Metrics())
    try:
        yield stores
    finally:
        stores.close()


def left(registry: Registry) -> dict[str, list[int]]:
    registry.refresh()
    return {view.task: list(view.versions) for view in registry.tasks()}


def listed(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call("tasks", "prune", "--json", *arguments).splitlines()]


def test_what_nothing_names_is_listed_with_its_size_and_removed_when_told(
    registry: Registry, saved: Backbone, local: Path
) -> None:
    said = call("tasks", "prune", "--yes")
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["joy@1", "mood@2", "mood@3"]
    size = (local / "prompts" / "joy" / "2" / "adapter_model.safetensors").stat().st_size
    facts = f"{size / 1e3:.1f} kB", "embeddings", "tiny", f"3 versions, {3 * size / 1e3:.1f} kB", "3 versions removed"
    assert [word for word in facts if word not in said] == []
    assert left(registry) == {"mood": [1, 4], "joy": [2]}
    assert registry.resolve("mood@canary").number == 1
    assert registry.prompt(registry.resolve("mood")).digest == random_prompt(saved, seed=3).digest
    assert registry.publish("mood", Publication(random_prompt(saved))).number == 5
    assert "names every version" in call("tasks", "prune", "joy")


def test_without_a_terminal_and_without_yes_nothing_is_removed(registry: Registry) -> None:
    assert "say so with --yes" in call("tasks", "prune", code=1)
    assert left(registry) == {"mood": [1, 2, 3, 4], "joy": [1, 2]}


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_asked_and_what_is_named_meanwhile_stays(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def answer_late(text: str, *, abort: bool) -> None:
        assert (text, abort) == ("Remove 2 of them for good?", True)
        registry.set_alias("mood", "new", 2)
        if answer == "n":
            raise prune.typer.Abort

    monkeypatch.setattr(prune, "has_terminal", lambda: True)
    monkeypatch.setattr(prune.typer, "confirm", answer_late)
    said = call("tasks", "prune", "mood", code=0 if answer == "y" else 1)
    assert ("1 version removed" in said) == (answer == "y")
    assert left(registry) == {"mood": [1, 2, 4] if answer == "y" else [1, 2, 3, 4], "joy": [1, 2]}


def test_an_alias_that_moves_after_the_last_look_keeps_its_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = prune.FolderVersions.find_unused

    def find_and_move(self: prune.FolderVersions, *asked: Any) -> list[dict[str, Any]]:
        found = find(self, *asked)
        registry.set_alias("mood", "new", 2)
        return found

    monkeypatch.setattr(prune.FolderVersions, "find_unused", find_and_move)
    said = call("tasks", "prune", "mood", "--yes")
    assert "mood@2 stays: mood@2 is the version alias new names" in said
    assert "1 version removed" in said
    assert left(registry)["mood"] == [1, 2, 4]


def test_as_json_it_lists_and_removes_only_when_told(registry: Registry) -> None:
    found = listed("mood", "--keep", "2")
    assert [(each["id"], each["is_removed"]) for each in found] == [("mood@2", False)]
    assert set(found[0]) == {"id", "backbone_name", "kind", "num_bytes", "created_at", "metrics", "is_removed"}
    assert left(registry)["mood"] == [1, 2, 3, 4]
    removed = listed("mood", "joy", "--keep", "2", "--yes")
    assert [(each["id"], each["is_removed"]) for each in removed] == [("mood@2", True)]
    assert left(registry) == {"mood": [1, 3, 4], "joy": [1, 2]}
    assert listed("mood", "--keep", "2", "--yes") == []


def test_versions_for_other_backbones_go_and_stay_by_their_own_aliases(registry: Registry, local: Path) -> None:
    other = tiny_backbone("qwen2")
    there = Registry(FileStore(local / "prompts"), other)
    for seed in range(3):
        there.publish("mood", Publication(random_prompt(other, seed=seed)))
    assert [each["id"] for each in listed("mood")] == ["mood@2", "mood@3", "mood@5", "mood@6"]
    assert [each["id"] for each in listed("mood", "--keep", "2")] == ["mood@2", "mood@5"]


def test_what_jobs_name_stays_while_a_server_holds_them(registry: Registry, saved: Backbone, local: Path) -> None:
    registry.publish("made", Publication(random_prompt(saved, seed=5), provenance={"job": "ftjob-gone"}), alias=None)
    assert not [each for each in listed() if each["id"] == "made@1"]  # without jobs to look at, it may be a job's
    with held_jobs(local) as stores:
        busy = stores.jobs.create({**SPEC, "task": "joy"}, "queued")
        checkpoint = Publication(random_prompt(saved, seed=6), provenance={"job": busy.id})
        registry.publish("made", checkpoint, alias=None)
        assert [each["id"] for each in listed("--yes")] == ["made@1", "mood@2", "mood@3"]
        assert stores.jobs.get(busy.id).status is JobStatus.QUEUED
        assert left(registry) == {"mood": [1, 4], "joy": [1, 2], "made": [2]}


def test_a_damaged_jobs_database_is_said_and_nothing_is_removed(registry: Registry, local: Path) -> None:
    (local / "prompts" / ".state").mkdir()
    (local / "prompts" / ".state" / "jobs.sqlite3").write_bytes(b"not a database" * 100)
    assert "jobs.sqlite3 cannot be read" in call("tasks", "prune", "--yes", code=1)
    assert left(registry)["mood"] == [1, 2, 3, 4]


def test_a_version_that_cannot_be_read_stays(registry: Registry, local: Path) -> None:
    (local / "prompts" / "mood" / "2" / "task.json").write_bytes(b"{}")
    assert [each["id"] for each in listed("mood", "--yes")] == ["mood@3"]
    assert (local / "prompts" / "mood" / "2" / "task.json").exists()


def test_a_task_that_is_not_there_is_named(registry: Registry) -> None:
    assert "no task moood; is it mood?" in call("tasks", "prune", "moood", code=1)
    assert "a-z" in call("tasks", "prune", "mood@1", code=1)
    assert left(registry)["mood"] == [1, 2, 3, 4]


def test_demo_tasks_that_are_not_ones_own_are_left_alone(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOFTSWAP_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert listed(*(path.name for path in demo_tasks().iterdir() if path.name[0] != "."), "--yes") == []
    assert not (tmp_path / "softswap").exists()


def test_a_server_prunes_what_is_for_its_backbone(tmp_path: Path) -> None:
    own, other = tiny_backbone(), tiny_backbone("qwen2")
    with run_server(make_settings(tmp_path), own) as live:
        there = Registry(FileStore(tmp_path), other)
        for seed in range(3):
            live.registry.publish("mood", Publication(random_prompt(own, seed=seed)))
            there.publish("mood", Publication(random_prompt(other, seed=seed)))
        live.registry.refresh()
        place = ("--url", live.url)
        assert [each["id"] for each in listed("mood", *place)] == ["mood@1", "mood@3"]
        assert "say so with --yes" in call("tasks", "prune", *place, code=1)
        assert "2 versions removed" in call("tasks", "prune", "--yes", *place)
        assert left(live.registry) == {"mood": [2, 4, 5, 6]}
        assert "names every version" in call("tasks", "prune", *place)
        assert "no answer" in call("tasks", "prune", "--url", "http://127.0.0.1:9", code=1)


def test_on_a_server_what_a_waiting_job_needs_stays(tmp_path: Path) -> None:
    own = tiny_backbone()
    with run_server(make_settings(tmp_path), own) as live:
        _publish(live, own)
        live.tuning.stop()  # so that the job waits
        others = dict.fromkeys(("training_file", "validation_file", "metadata"), None) | {"training_file": "file-1"}
        live.tuning.jobs.create({**SPEC, **others, "seed": 0, "model": "mood@1"}, "queued")
        assert [each["id"] for each in listed("--url", live.url)] == ["joy@1"]


def _publish(live: LiveServer, backbone: Backbone) -> None:
    for seed in range(2):
        for task in ("mood", "joy"):
            live.registry.publish(task, Publication(random_prompt(backbone, seed=seed)))


def test_what_a_job_of_another_servers_state_folder_made_stays(
    registry: Registry, saved: Backbone, local: Path
) -> None:
    """Servers of two backbones answer from one registry, each with its own state folder."""
    registry.publish("made", Publication(random_prompt(saved, seed=5), provenance={"job": "ftjob-theirs"}), alias=None)
    with held_jobs(local) as stores:
        stores.folder.note_backbone("0" * 64)
        assert "made@1" not in [each["id"] for each in listed("--yes")]
        stores.folder.note_backbone(saved.fingerprint)
        assert "made@1" in [each["id"] for each in listed("--yes")]
