"""A task that lives on several backbones: whose version a name means, and that each leaves the others' alone."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import Conflict, CorruptPrompt, GateFailed, InvalidInput, NotFound
from app.model.backbone import Backbone
from app.registry.aliases import AliasTable, Gate
from app.registry.formats.json_file import seal
from app.registry.kept.evaluations import RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore, Store
from tests.support.memory_store import MemoryStore
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder, random_prompt

A, B, C = "a" * 64, "b" * 64, "c" * 64
"""Fingerprints."""
EXAMPLES = b'["a film", "yes"]\n["a play", "no"]\n'
GATE = Gate(hashlib.sha256(EXAMPLES).hexdigest(), "accuracy")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with memory_folder() as folder:
        yield FileStore(folder / "prompts") if request.param == "file" else MemoryStore()


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path / "prompts"


@pytest.fixture
def small() -> Backbone:
    return tiny_backbone("llama")


@pytest.fixture
def large() -> Backbone:
    return tiny_backbone("qwen2")


def publish(registry: Registry, backbone: Backbone, *, seed: int = 0, alias: str | None = "live") -> str:
    return registry.publish("mood", Publication(random_prompt(backbone, seed=seed)), alias=alias).id


# --- what a name means


def test_a_name_means_each_backbones_own_version(store: Store, small: Backbone, large: Backbone) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    published = [publish(ours, small), publish(theirs, large), publish(ours, small, seed=1)]
    assert published == ["mood@1", "mood@2", "mood@3"]
    theirs.refresh()
    assert (ours.resolve("mood").id, theirs.resolve("mood").id) == ("mood@3", "mood@2")
    assert theirs.prompt(theirs.resolve("mood")).backbone_fingerprint == large.fingerprint
    theirs.set_alias("mood", "canary", 2)
    ours.set_alias("mood", "canary", {1: 0.5, 3: 0.5})
    theirs.refresh()
    assert theirs.resolve("mood@canary").number == 2
    assert {ours.resolve("mood@canary", rng=random.Random(seed)).number for seed in range(20)} == {1, 3}
    for registry, numbers in ((ours, [1, 3]), (theirs, [2])):
        assert list(registry.task("mood").own_versions) == numbers
        assert [version.number for version in registry.versions("mood")] == [1, 2, 3]
        assert registry.task("mood").missing is None


def test_a_version_for_another_backbone_is_not_found_by_any_name_and_the_error_names_both(
    store: Store, small: Backbone, large: Backbone
) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small)
    publish(theirs, large)
    ours.refresh()
    version = ours.version("mood", 2)
    for name in ("mood@2", f"mood@sha256:{version.digest}"):
        with pytest.raises(NotFound) as refusal:
            ours.resolve(name)
        assert refusal.value.message == "mood@2 was made for tiny-qwen2, not for tiny-llama; for that there is mood@1"
        assert refusal.value.param == "version"
    theirs.delete_task("mood")
    with pytest.raises(NotFound, match=r"tiny-llama, not for tiny-qwen2; make one with `softswap retune mood --model"):
        theirs.resolve("mood@1")


def test_a_task_without_a_version_for_the_backbone_says_what_there_is_and_what_to_do(
    store: Store, small: Backbone, large: Backbone
) -> None:
    publish(Registry(store, small), small)
    theirs = Registry(store, large)
    missing = (
        "no version for tiny-qwen2; it has versions for tiny-llama; make one with "
        "`softswap retune mood --model tiny-qwen2`"
    )
    for name in ("mood", "mood@live", "mood@canary"):
        with pytest.raises(NotFound) as refusal:
            theirs.resolve(name)
        assert refusal.value.message == f"task mood has {missing}"
    [shown] = theirs.tasks()
    assert (shown.missing, shown.live, shown.aliases, shown.own_versions) == (missing, None, {}, {})
    [for_small] = shown.backbones
    assert (for_small.name, for_small.num_versions, for_small.aliases) == ("tiny-llama", 1, {"live": 1})


def test_an_alias_of_another_backbone_alone_is_said_to_be_that(store: Store, small: Backbone, large: Backbone) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small, alias="canary")
    publish(theirs, large)
    with pytest.raises(NotFound, match="no alias canary here, only for tiny-llama; pin a version as mood@2"):
        theirs.resolve("mood@canary")
    with pytest.raises(NotFound, match="no alias none; pin"):
        theirs.resolve("mood@none")


def test_backbones_that_are_called_the_same_are_told_apart(store: Store) -> None:
    first, second = tiny_backbone("llama"), tiny_backbone("llama", seed=1)
    assert first.name == second.name
    publish(Registry(store, first), first)
    with pytest.raises(NotFound) as refusal:
        Registry(store, second).resolve("mood@1")
    for backbone in (first, second):
        assert f"tiny-llama ({backbone.fingerprint[:12]})" in refusal.value.message


def test_a_backbone_without_a_name_is_called_by_its_digits(folder: Path, small: Backbone, large: Backbone) -> None:
    publish(Registry(FileStore(folder), small), small)
    path = folder / "mood" / "1" / "task.json"
    fields = json.loads(path.read_text())
    fields["backbone"]["name"] = ""
    path.write_bytes(seal({name: value for name, value in fields.items() if name != "checksum"}))
    with pytest.raises(NotFound, match=f"has versions for {small.fingerprint[:12]};"):
        Registry(FileStore(folder), large).resolve("mood")


def test_without_aliases_the_newest_version_for_each_backbone_is_live(
    folder: Path, small: Backbone, large: Backbone
) -> None:
    ours, theirs = Registry(FileStore(folder), small), Registry(FileStore(folder), large)
    for registry, backbone in ((ours, small), (theirs, large), (ours, small), (theirs, large), (ours, small)):
        publish(registry, backbone)
    (folder / "mood" / "aliases.json").unlink()
    for registry, number in ((ours, 5), (theirs, 4)):
        registry.refresh()
        assert registry.resolve("mood").number == number
    publish(theirs, large, alias=None)
    for registry, number in ((ours, 5), (theirs, 4)):
        registry.refresh()
        assert registry.resolve("mood").number == number


# --- each leaves the other's alone


def test_writers_of_two_backbones_never_drop_each_others_aliases(
    store: Store, small: Backbone, large: Backbone
) -> None:
    """Neither refreshes: each write starts from what is on disk."""
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small)
    publish(theirs, large)
    publish(ours, small, seed=1, alias="canary")
    theirs.set_alias("mood", "canary", 2)
    ours.set_alias("mood", "live", 3)
    theirs.delete_alias("mood", "canary")
    ours.delete_version("mood", 1)
    ours.refresh()
    theirs.refresh()
    assert ours.task("mood").aliases == {"live": 3, "canary": 3}
    assert theirs.task("mood").aliases == {"live": 2}
    ours.delete_task("mood")
    theirs.refresh()
    assert theirs.resolve("mood").number == 2
    with pytest.raises(NotFound, match="no version for tiny-llama"):
        ours.delete_task("mood")
    theirs.delete_task("mood")
    assert theirs.tasks() == []
    assert publish(ours, small) == "mood@4"


def test_what_another_backbone_has_cannot_be_moved_to_or_deleted_from_here(
    store: Store, small: Backbone, large: Backbone
) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small)
    publish(theirs, large, alias=None)
    publish(theirs, large, alias="canary")
    for change in (
        lambda: ours.set_alias("mood", "live", 2),
        lambda: ours.set_alias("mood", "live", {1: 0.5, 2: 0.5}),
        lambda: ours.delete_version("mood", 2),
        lambda: ours.delete_version("mood", 3),
    ):
        with pytest.raises(NotFound, match=r"mood@\d was made for tiny-qwen2, not for tiny-llama"):
            change()
    with pytest.raises(NotFound, match="no such alias"):
        ours.delete_alias("mood", "canary")
    theirs.refresh()
    assert theirs.task("mood").aliases == {"canary": 3}


def test_the_etag_changes_with_every_backbones_part(store: Store, small: Backbone, large: Backbone) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small)
    seen = ours.task("mood").etag
    publish(theirs, large)
    assert theirs.task("mood").etag not in (seen, "")
    with pytest.raises(Conflict):
        ours.set_alias("mood", "canary", 1, if_match=seen)
    ours.set_alias("mood", "canary", 1, if_match=ours.task("mood").etag)


# --- gates


def score(registry: Registry, number: int, accuracy: float) -> None:
    version = registry.version("mood", number)
    registry.record_evaluation(
        version,
        RecordedEvaluation(digest=version.digest, data_sha256=GATE.data_sha256, metrics={"accuracy": accuracy}),
    )


def test_a_gate_compares_versions_of_its_own_backbone(store: Store, small: Backbone, large: Backbone) -> None:
    ours, theirs = Registry(store, small), Registry(store, large)
    publish(ours, small)
    publish(theirs, large)
    publish(ours, small, seed=1, alias=None)
    publish(theirs, large, seed=1, alias=None)
    for number, accuracy in ((1, 0.9), (2, 0.5), (3, 0.8), (4, 0.6)):
        score(ours, number, accuracy)
    ours.set_alias("mood", "live", 1, gate=GATE, gate_examples=EXAMPLES)
    theirs.set_alias("mood", "live", 2, gate=GATE, gate_examples=EXAMPLES)
    with pytest.raises(GateFailed, match=r"version 3 has accuracy 0\.8000"):
        ours.set_alias("mood", "live", 3)
    theirs.set_alias("mood", "live", 4)
    ours.delete_gate("mood", "live")
    ours.set_alias("mood", "live", 3)
    theirs.refresh()
    assert theirs.task("mood").gates == {"live": GATE}
    assert theirs.evaluations.gate_examples("mood", GATE) == EXAMPLES
    with pytest.raises(GateFailed, match=r"version 2 has accuracy 0\.5000"):
        Registry(store, None).set_alias("mood", "live", 2)
    theirs.delete_gate("mood", "live")
    with pytest.raises(CorruptPrompt):
        theirs.evaluations.gate_examples("mood", GATE)


# --- without a backbone


def test_without_a_backbone_an_alias_moves_where_its_version_lives(
    store: Store, small: Backbone, large: Backbone
) -> None:
    ours, theirs, offline = Registry(store, small), Registry(store, large), Registry(store, None)
    for registry, backbone in ((ours, small), (theirs, large), (ours, small), (theirs, large)):
        publish(registry, backbone)
    offline.set_alias("mood", "live", 1)
    offline.set_alias("mood", "canary", {2: 0.9, 4: 0.1})
    with pytest.raises(InvalidInput, match="for the same backbone"):
        offline.set_alias("mood", "live", {1: 0.5, 2: 0.5})
    for registry in (ours, theirs):
        registry.refresh()
    assert ours.task("mood").aliases == {"live": 1}
    assert theirs.task("mood").aliases == {"live": 4, "canary": {2: 0.9, 4: 0.1}}
    with pytest.raises(InvalidInput, match="mood@live means mood@1 for tiny-llama and mood@4 for tiny-qwen2"):
        offline.resolve("mood")
    assert offline.resolve("mood@canary").number in (2, 4)
    assert offline.resolve("mood@3").backbone_name == "tiny-llama"
    assert offline.prompt(offline.resolve("mood@4")).backbone_fingerprint == large.fingerprint
    assert [each.name for each in offline.task("mood").backbones] == ["tiny-llama", "tiny-qwen2"]
    with pytest.raises(InvalidInput, match="mood@1 is the version alias live names; move it first"):
        offline.delete_version("mood", 1)
    offline.delete_version("mood", 3)
    with pytest.raises(InvalidInput, match="mood@1 is the version alias live names; delete the alias first"):
        offline.delete_version("mood", 1)
    offline.delete_alias("mood", "live")
    assert offline.task("mood").backbones[1].aliases == {"canary": {2: 0.9, 4: 0.1}}
    offline.delete_task("mood")
    assert offline.tasks() == []


# --- aliases.json


@pytest.mark.parametrize(
    ("said", "placed"),
    [
        ({"live": 1}, {"live": {A: 1}}),
        ({"live": {"1": 0.9, "3": 0.1}}, {"live": {A: {1: 0.9, 3: 0.1}}}),
        ({"live": 1, "canary": 2}, {"live": {A: 1}, "canary": {B: 2}}),
        ({"live": {"1": 0.9, "2": 0.1}}, {"live": {A: 1, B: 2}}),
        ({"live": {"1": 0.9, "9": 0.1}}, {"live": {A: {1: 0.9, 9: 0.1}}}),
        ({"live": 9}, {"live": {"": 9}}),
        ({"live": {A: 3, B: 2}}, {"live": {A: 3, B: 2}}),
        ({"live": {A: {"1": 0.9, "3": 0.1}, B: 2}}, {"live": {A: {1: 0.9, 3: 0.1}, B: 2}}),
        ({"live": {A: 9, B: 2}}, {"live": {A: 9, B: 2}}),
        ({"live": {C: 9}}, {"live": {C: 9}}),
        ({"live": {A: 2}}, {"live": {B: 2}}),
        ({"live": {A: 2, B: 4}}, {"live": {B: 4}}),
        ({"live": {B: 4, A: 2}}, {"live": {B: 4}}),
        ({"live": {"": 2}}, {"live": {B: 2}}),
    ],
)
def test_a_target_belongs_to_the_backbone_of_its_versions_whatever_the_file_says(
    said: dict[str, object], placed: dict[str, object]
) -> None:
    number_to_backbone = {1: A, 2: B, 3: A, 4: B}
    table = AliasTable.decode(json.dumps({"aliases": said}).encode(), number_to_backbone)
    assert table.aliases == placed
    assert AliasTable.decode(table.encode(), number_to_backbone) == table


def test_what_cannot_be_read_belongs_to_the_only_backbone_there_is() -> None:
    for said in ({"live": 9}, {"live": {"": 9}}):
        assert AliasTable.decode(json.dumps({"aliases": said}).encode(), {1: A}).aliases == {"live": {A: 9}}
    assert AliasTable.decode(b'{"aliases": {"live": 9}}', {}).target("live", A) == 9


@pytest.mark.parametrize(
    "aliases",
    [{"live": {"short": 1}}, {"live": {A: {"1": 1}}}, {"live": {A: "1"}}, {"live": {A: {B: 1}}}, {"live": {}}],
)
def test_targets_by_backbone_that_make_no_sense_are_refused(aliases: dict[str, object]) -> None:
    with pytest.raises(CorruptPrompt):
        AliasTable.decode(json.dumps({"schema_version": 2, "aliases": aliases}).encode(), {1: A})


def test_a_file_of_before_is_read_and_the_first_write_upgrades_it(
    folder: Path, small: Backbone, large: Backbone
) -> None:
    ours, theirs = Registry(FileStore(folder), small), Registry(FileStore(folder), large)
    publish(ours, small)
    publish(theirs, large)
    publish(ours, small, alias=None)
    gate = {"data_sha256": GATE.data_sha256, "metric": "accuracy", "tolerance": 0.0}
    fields = {
        "schema_version": 1, "revision": 7, "last_number": 3, "aliases": {"live": {"1": 0.9, "3": 0.1}, "canary": 2},
        "deleting": [], "gates": {"live": gate},
    }  # fmt: skip
    path = folder / "mood" / "aliases.json"
    path.write_bytes(seal(fields))
    for registry in (ours, theirs):
        registry.refresh()
        assert registry.faults() == {}
    assert (ours.task("mood").aliases, ours.task("mood").gates) == ({"live": {1: 0.9, 3: 0.1}}, {"live": GATE})
    assert (theirs.task("mood").aliases, theirs.task("mood").gates) == ({"canary": 2}, {})
    assert json.loads(path.read_text())["schema_version"] == 1
    theirs.set_alias("mood", "live", 2)
    written = json.loads(path.read_text())
    assert (written["schema_version"], written["revision"]) == (2, 8)
    assert written["aliases"]["live"] == {small.fingerprint: {"1": 0.9, "3": 0.1}, large.fingerprint: 2}
    ours.refresh()
    assert ours.task("mood").aliases == {"live": {1: 0.9, 3: 0.1}}


def publish_damaged(folder: Path, backbone: Backbone) -> tuple[Path, bytes]:
    """As mood@2, cut short. Returns the file and its whole content."""
    publish(Registry(FileStore(folder), backbone), backbone)
    path = folder / "mood" / "2" / "task.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    return path, whole


def test_a_damaged_version_of_another_backbone_keeps_its_alias_through_our_writes(
    folder: Path, small: Backbone, large: Backbone
) -> None:
    publish(Registry(FileStore(folder), small), small)
    path, whole = publish_damaged(folder, large)
    ours = Registry(FileStore(folder), small)
    publish(ours, small, seed=1)
    assert ours.task("mood").aliases == {"live": 3}
    theirs = Registry(FileStore(folder), large)
    with pytest.raises(CorruptPrompt, match="mood@2 cannot be served"):
        theirs.resolve("mood")
    path.write_bytes(whole)
    theirs.refresh()
    assert theirs.resolve("mood").number == 2


# --- over a folder that is only read


def test_versions_for_two_backbones_in_the_folder_below_are_used_and_built_upon(
    folder: Path, small: Backbone, large: Backbone
) -> None:
    below, own = folder / "below", folder / "own"
    publish(Registry(FileStore(below), small), small)
    publish(Registry(FileStore(below), large), large)
    before = {path: path.read_bytes() for path in below.rglob("*.json")}
    ours, theirs = Registry(FileStore(own, below), small), Registry(FileStore(own, below), large)
    assert (ours.resolve("mood").number, theirs.resolve("mood").number) == (1, 2)
    assert publish(theirs, large, seed=1) == "mood@3"
    ours.refresh()
    assert (ours.resolve("mood").number, theirs.resolve("mood").number) == (1, 3)
    ours.delete_task("mood")
    theirs.refresh()
    assert theirs.resolve("mood").number == 3
    assert all(path.read_bytes() == content for path, content in before.items())
    shutil.rmtree(own / "mood")
    ours.refresh()
    assert ours.resolve("mood").number == 1


def test_a_delete_on_one_backbone_leaves_what_cannot_be_read_and_may_be_anothers(
    folder: Path, small: Backbone, large: Backbone
) -> None:
    publish(Registry(FileStore(folder), small), small)
    path, whole = publish_damaged(folder, large)
    ours = Registry(FileStore(folder), small)
    with pytest.raises(InvalidInput, match="may be another backbone's; `softswap tasks rm mood"):
        ours.delete_version("mood", 2)
    ours.delete_task("mood")
    with pytest.raises(InvalidInput, match="may be another backbone's; `softswap tasks rm mood"):
        ours.delete_task("mood")
    path.write_bytes(whole)
    theirs = Registry(FileStore(folder), large)
    assert theirs.resolve("mood").number == 2
    theirs.delete_task("mood")
    assert not (folder / "mood" / "2").exists()


def test_a_damaged_version_of_ones_own_can_be_deleted(folder: Path, small: Backbone) -> None:
    ours = Registry(FileStore(folder), small)
    publish(ours, small)
    publish(ours, small, seed=1)
    (folder / "mood" / "1" / "task.json").write_bytes(b"{}")
    ours.refresh()
    ours.delete_version("mood", 1)
    ours.delete_task("mood")
    assert not list((folder / "mood").glob("[0-9]*"))
