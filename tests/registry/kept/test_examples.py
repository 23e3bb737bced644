"""Examples that are kept with a task: once, whole or refused, as long as a version was tuned on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import CorruptPrompt
from app.measure.dataset import Example, pack_examples, unpack_examples
from app.model.backbone import Backbone
from app.registry.aliases import AliasTable
from app.registry.kept.examples import TunedOn
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore, Store
from app.registry.version import Version
from tests.support.memory_store import MemoryStore
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder, random_prompt

TRAIN = [Example(f"Zug {number} \N{NEXT LINE}\u2028fährt", "ja") for number in range(5)]
HELD_OUT = [Example("ein Bus\n", "nein")]
EXAMPLES = TunedOn(pack_examples(TRAIN), pack_examples(HELD_OUT))
OTHERS = TunedOn(pack_examples(TRAIN[:2]), pack_examples(HELD_OUT))


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with memory_folder() as folder:
        yield FileStore(folder / "prompts") if request.param == "file" else MemoryStore()


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path / "prompts"


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


def publish(registry: Registry, backbone: Backbone, examples: TunedOn | None = EXAMPLES, **more: object) -> Version:
    publication = Publication(random_prompt(backbone), examples=examples, provenance={"method": "tuning"}, **more)
    return registry.publish("a", publication, alias=None)


def test_they_are_kept_once_and_read_back_by_the_next_process(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, backbone)
    for _ in range(3):
        publish(registry, backbone)
    assert list(store.entries("a/examples")) == [f"{EXAMPLES.sha256}.jsonl"]
    for again in (registry, Registry(store, None)):
        for version in again.versions("a"):
            kept = again.examples(version)
            assert kept == EXAMPLES
            assert (unpack_examples(kept.train), unpack_examples(kept.validation)) == (TRAIN, HELD_OUT)
    said = {"sha256": EXAMPLES.sha256, "num_train": 5, "num_validation": 1}
    assert registry.resolve("a@1").provenance == {"method": "tuning", "kept_examples": said}


def test_by_default_nothing_is_kept(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, backbone)
    version = publish(registry, backbone, None)
    assert (registry.examples(version), dict(version.provenance)) == (None, {"method": "tuning"})
    assert store.entry("a/examples") is None


def test_they_go_with_the_last_version_that_was_tuned_on_them(store: Store, backbone: Backbone) -> None:
    registry, theirs = Registry(store, backbone), Registry(store, tiny_backbone("qwen2"))
    publish(registry, backbone)
    publish(theirs, tiny_backbone("qwen2"))
    publish(registry, backbone, OTHERS)
    registry.delete_version("a", 1)
    assert len(store.entries("a/examples")) == 2
    registry.delete_version("a", 3)
    assert theirs.examples(theirs.version("a", 2)) == EXAMPLES
    assert list(store.entries("a/examples")) == [f"{EXAMPLES.sha256}.jsonl"]
    theirs.delete_task("a")
    assert store.entry("a/examples") is None


def test_what_a_version_that_cannot_be_read_was_tuned_on_stays(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    publish(registry, backbone)
    publish(registry, backbone, OTHERS)
    path = folder / "a" / "1" / "task.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    registry = Registry(FileStore(folder), backbone)
    registry.delete_version("a", 2)
    path.write_bytes(whole)
    registry.refresh()
    assert registry.examples(registry.resolve("a@1")) == EXAMPLES


def test_a_deletion_that_a_crash_interrupted_takes_them_along(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    publish(registry, backbone)
    publish(registry, backbone, None)
    path = folder / "a" / "aliases.json"
    path.write_bytes(AliasTable.decode(path.read_bytes(), {}).changed(deleting=(1,)).encode())
    assert [version.number for version in Registry(FileStore(folder), backbone).versions("a")] == [2]
    assert not (folder / "a" / "examples").exists()


def test_damaged_ones_are_refused_and_missing_ones_are_none(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    version = publish(registry, backbone)
    path = folder / "a" / "examples" / f"{EXAMPLES.sha256}.jsonl"
    path.write_bytes(path.read_bytes().replace(b"ja", b"ne", 1))
    with pytest.raises(CorruptPrompt, match="is damaged"):
        registry.examples(version)
    path.unlink()
    assert registry.examples(version) is None


@pytest.mark.parametrize(
    "said",
    [5, {}, {"sha256": "../../etc/passwd", "num_train": 1}, {"sha256": 7, "num_train": 1},
     {"sha256": "a" * 64}, {"sha256": "a" * 64, "num_train": -1}, {"sha256": "a" * 64, "num_train": "1"}],
)  # fmt: skip
def test_provenance_may_say_anything(store: Store, backbone: Backbone, said: object) -> None:
    registry = Registry(store, backbone)
    publication = Publication(random_prompt(backbone), provenance={"kept_examples": said})
    assert registry.examples(registry.publish("a", publication)) is None
    registry.delete_task("a")


def test_they_are_no_file_of_a_version(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, backbone)
    files = registry.files(publish(registry, backbone))
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "task.json"]
    assert all(b"Zug" not in content for content in files.values())


def test_over_a_folder_that_is_only_read_they_are_copied_up_with_the_task(folder: Path, backbone: Backbone) -> None:
    below, own = folder / "below", folder / "own"
    publish(Registry(FileStore(below), backbone), backbone)
    registry = Registry(FileStore(own, below), backbone)
    assert registry.examples(registry.resolve("a@1")) == EXAMPLES
    publish(registry, backbone, OTHERS)
    registry.delete_version("a", 1)
    assert [path.name for path in (own / "a" / "examples").iterdir()] == [f"{OTHERS.sha256}.jsonl"]
    assert [path.name for path in (below / "a" / "examples").iterdir()] == [f"{EXAMPLES.sha256}.jsonl"]
