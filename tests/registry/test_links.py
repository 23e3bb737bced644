"""Links in a registry: nothing outside it is ever written, moved or deleted, and what is not served is told by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.errors import CorruptPrompt, NotFound, RegistryUnavailable, SoftswapError
from app.model.backbone import Backbone
from app.registry.formats.foreign_file import read_checkpoint
from app.registry.kept.evaluations import RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import TEMPORARY, FileStore
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder, random_prompt, write_checkpoint

EXAMPLES = "e" * 64


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def root(folder: Path) -> Path:
    (folder / "prompts").mkdir()
    return folder / "prompts"


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def registry(root: Path, backbone: Backbone) -> Registry:
    return Registry(FileStore(root), backbone, settle_s=0)


@pytest.fixture
def outside(folder: Path, backbone: Backbone) -> Path:
    """A user's own files: a PEFT checkpoint, and a task that another registry has published."""
    write_checkpoint(folder / "outside" / "checkpoint", random_prompt(backbone, seed=3), backbone)
    registry = Registry(FileStore(folder / "outside" / "other"), backbone)
    for seed in range(2):
        registry.publish("mood", Publication(random_prompt(backbone, seed=seed)))
    (folder / "outside" / "other" / "mood" / f"{TEMPORARY}half").write_bytes(b"someone else's")
    return folder / "outside"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that a write, a move or a deletion would change."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes()) for path in paths}


def use(registry: Registry, backbone: Backbone) -> None:
    """All that reads and writes a task, refused or not."""
    evaluation = RecordedEvaluation(digest="d" * 64, data_sha256=EXAMPLES, metrics={"accuracy": 1.0})
    for work in (
        registry.refresh,
        lambda: registry.prompt(registry.resolve("mood")),
        lambda: registry.publish("mood", Publication(random_prompt(backbone, seed=9))),
        lambda: registry.publish("mood", Publication(random_prompt(backbone, seed=8)), alias=None),
        lambda: registry.set_alias("mood", "canary", 1),
        lambda: registry.record_evaluation(registry.resolve("mood"), evaluation),
        lambda: registry.delete_alias("mood", "canary"),
        lambda: registry.delete_version("mood", 1),
        lambda: registry.delete_task("mood"),
        registry.refresh,
    ):
        with suppress(SoftswapError):
            work()


CASES = {
    "a task's folder is a link to a checkpoint": ("mood", "checkpoint", "mood"),
    "a task's folder is a link to a task": ("mood", "other/mood", "mood"),
    "a task's folder is a link to a file": ("mood", "checkpoint/adapter_config.json", "mood"),
    "a task's folder is a link to nothing": ("mood", "nowhere", "mood"),
    "a version's folder is a link to a checkpoint": ("mood/7", "checkpoint", "mood/7"),
    "a version's folder is a link to a version": ("mood/7", "other/mood/1", "mood/7"),
    "a version's folder is a link to nothing": ("mood/7", "nowhere", "mood/7"),
    "aliases.json is a link": ("mood/aliases.json", "other/mood/aliases.json", "mood/aliases.json"),
    "aliases.json is a link to nothing": ("mood/aliases.json", "nowhere", "mood/aliases.json"),
}


@pytest.mark.parametrize(("place", "target", "fault"), CASES.values(), ids=CASES.keys())
def test_a_link_is_refused_by_name_and_nothing_it_points_to_changes(
    registry: Registry,
    root: Path,
    outside: Path,
    backbone: Backbone,
    place: str,
    target: str,
    fault: str,
) -> None:
    link = root / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(os.path.relpath(outside / target, link.parent) if "/" in place else outside / target)
    before = snapshot(outside)
    registry.refresh()
    assert "is a link" in registry.faults()[fault]
    assert registry.tasks() == []
    use(registry, backbone)
    use(Registry(FileStore(root), backbone, settle_s=0), backbone)
    assert snapshot(outside) == before


def test_a_linked_task_says_so_to_whoever_asks_for_it_or_writes_to_it(
    registry: Registry, root: Path, outside: Path, backbone: Backbone
) -> None:
    (root / "mood").symlink_to(outside / "checkpoint")
    registry.refresh()
    with pytest.raises(NotFound, match=r"no task mood: the folder is a link.*cp -rL"):
        registry.resolve("mood")
    with pytest.raises(RegistryUnavailable, match="the folder is a link"):
        registry.publish("mood", Publication(random_prompt(backbone)))
    with pytest.raises(RegistryUnavailable, match="the folder is a link"):
        registry.delete_task("mood")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "task.json", "README.md"])
def test_a_version_with_a_linked_file_is_refused_and_deleting_it_removes_the_link_only(
    registry: Registry, root: Path, outside: Path, backbone: Backbone, name: str
) -> None:
    registry.publish("mood", Publication(random_prompt(backbone)))
    shutil.copytree(outside / "other" / "mood" / "2", root / "mood" / "2")
    (root / "mood" / "2" / name).unlink()
    (root / "mood" / "2" / name).symlink_to(outside / "other" / "mood" / "2" / name)
    before = snapshot(outside)
    registry.refresh()
    assert f"{name} is a link" in registry.faults()["mood/2"]
    with pytest.raises(CorruptPrompt, match="is a link"):
        registry.resolve("mood@2")
    registry.delete_version("mood", 2)
    assert not (root / "mood" / "2").exists()
    assert registry.faults() == {}
    assert snapshot(outside) == before


@pytest.mark.parametrize("place", ["mood", "mood/1"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_dropped_checkpoint_with_a_linked_file_is_not_adopted(
    registry: Registry, root: Path, outside: Path, place: str, name: str
) -> None:
    """As a snapshot of the hub's cache looks, copied with its links."""
    shutil.copytree(outside / "checkpoint", root / place)
    (root / place / name).unlink()
    (root / place / name).symlink_to(outside / "checkpoint" / name)
    before = snapshot(outside), sorted(path.name for path in (root / place).iterdir())
    registry.refresh()
    assert f"{name} is a link" in registry.faults()[place]
    assert registry.tasks() == []
    assert (snapshot(outside), sorted(path.name for path in (root / place).iterdir())) == before
    (root / place / name).unlink()
    shutil.copy(outside / "checkpoint" / name, root / place / name)
    registry.refresh()
    assert registry.resolve("mood").digest == read_checkpoint(outside / "checkpoint", tiny_backbone()).digest


@pytest.mark.parametrize("target", ["..", ".", "../..", "1"])
def test_a_link_back_into_the_registry_is_refused_like_any_other(
    registry: Registry, root: Path, backbone: Backbone, target: str
) -> None:
    version = registry.publish("mood", Publication(random_prompt(backbone)))
    (root / "mood" / "2").symlink_to(target)
    registry.refresh()
    assert "is a link" in registry.faults()["mood/2"]
    assert registry.resolve("mood") == version
    assert registry.prompt(version).digest == version.digest
    assert registry.publish("mood", Publication(random_prompt(backbone, seed=1))).number == 3
    registry.delete_version("mood", 2)
    assert not os.path.lexists(root / "mood" / "2")
    assert [each.number for each in registry.versions("mood")] == [1, 3]


@pytest.mark.parametrize("place", ["mood", "mood/1"])
def test_a_folder_replaced_by_a_link_under_a_running_registry_is_no_longer_written(
    registry: Registry, root: Path, outside: Path, backbone: Backbone, place: str
) -> None:
    registry.publish("mood", Publication(random_prompt(backbone)))
    (root / place).rename(outside / "moved")
    (root / place).symlink_to(outside / "moved")
    before = snapshot(outside)
    use(registry, backbone)  # the first thing it does is a refresh; what comes first must not matter
    assert snapshot(outside) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda registry, prompt: registry.publish("mood", Publication(prompt)),
        lambda registry, prompt: registry.set_alias("mood", "canary", 1),
        lambda registry, prompt: registry.delete_task("mood"),
    ],
    ids=["publish", "alias", "delete"],
)
def test_a_write_that_comes_before_the_next_look_does_not_follow_a_new_link(
    registry: Registry, root: Path, outside: Path, backbone: Backbone, write: Callable[..., object]
) -> None:
    registry.publish("mood", Publication(random_prompt(backbone)))
    (root / "mood").rename(outside / "moved")
    (root / "mood").symlink_to(outside / "moved")
    before = snapshot(outside)
    with pytest.raises(RegistryUnavailable, match="is a link"):
        write(registry, random_prompt(backbone, seed=1))
    assert snapshot(outside) == before


@pytest.mark.parametrize("place", ["evaluations", f"evaluations/1-{EXAMPLES}.json", f"evaluations/{EXAMPLES}.jsonl"])
def test_links_among_evaluations_are_not_followed(
    registry: Registry, root: Path, outside: Path, backbone: Backbone, place: str
) -> None:
    version = registry.publish("mood", Publication(random_prompt(backbone)))
    evaluation = RecordedEvaluation(digest=version.digest, data_sha256=EXAMPLES, metrics={"accuracy": 1.0})
    (outside / "evaluations").mkdir()
    (outside / "evaluations" / f"1-{EXAMPLES}.json").write_bytes(evaluation.encode())
    (outside / "evaluations" / f"{EXAMPLES}.jsonl").write_bytes(b"{}")
    (root / "mood" / place).parent.mkdir(exist_ok=True)
    (root / "mood" / place).symlink_to(outside / place)
    before = snapshot(outside)
    assert registry.evaluations.find(version, EXAMPLES) is None
    if place == "evaluations":
        with pytest.raises(RegistryUnavailable, match="mood/evaluations is a link"):
            registry.record_evaluation(version, evaluation)
    else:
        registry.record_evaluation(version, evaluation)
        assert registry.evaluations.find(version, EXAMPLES) == evaluation
    use(registry, backbone)
    assert registry.tasks() == []
    assert snapshot(outside) == before


def test_what_crashed_writers_left_behind_a_link_is_left_alone(root: Path, outside: Path) -> None:
    (root / "mood").symlink_to(outside / "other" / "mood")
    (root / "joy").mkdir()
    (root / "joy" / "1").symlink_to(outside / "other" / "mood")
    before = snapshot(outside)
    assert FileStore(root).sweep() == 0
    assert snapshot(outside) == before


def test_the_registry_itself_may_be_a_link(folder: Path, root: Path, backbone: Backbone) -> None:
    (folder / "linked").symlink_to(root)
    registry = Registry(FileStore(folder / "linked"), backbone)
    version = registry.publish("mood", Publication(random_prompt(backbone)))
    registry.set_alias("mood", "canary", 1)
    assert Registry(FileStore(root), backbone).resolve("mood@canary") == version
    assert registry.faults() == {}


def test_a_lock_that_is_a_link_is_refused_and_nothing_is_made_at_its_end(root: Path, outside: Path) -> None:
    (root / ".lock").symlink_to(outside / "made")
    with pytest.raises(RegistryUnavailable, match=r"\.lock is a link"):
        Registry(FileStore(root), None)
    assert not (outside / "made").exists()


def test_hard_links_are_files_like_any_other(registry: Registry, root: Path, outside: Path, backbone: Backbone) -> None:
    shutil.copytree(outside / "other" / "mood", root / "mood", copy_function=os.link)
    shutil.copytree(outside / "checkpoint", root / "joy", copy_function=os.link)
    (root / "mood" / f"{TEMPORARY}half").unlink()
    before = {name: content for name, (_, content) in snapshot(outside).items()}
    registry.refresh()
    assert registry.faults() == {}
    assert registry.prompt(registry.resolve("mood")).digest == random_prompt(backbone, seed=1).digest
    assert registry.resolve("joy").number == 1
    registry.set_alias("mood", "live", 1)
    for task in ("mood", "joy"):
        registry.delete_task(task)
    assert {name: content for name, (_, content) in snapshot(outside).items()} == before


def test_links_below_are_served_and_copied_up_as_files(
    folder: Path, root: Path, outside: Path, backbone: Backbone
) -> None:
    """An installer may link a package's files; they are only read."""
    (folder / "below" / "mood").mkdir(parents=True)
    (folder / "below" / "mood" / "1").symlink_to(outside / "other" / "mood" / "1")
    (folder / "below" / "mood" / "aliases.json").symlink_to(outside / "other" / "mood" / "aliases.json")
    before = snapshot(outside)
    registry = Registry(FileStore(root, folder / "below"), backbone)
    assert registry.resolve("mood@1").digest == random_prompt(backbone, seed=0).digest
    registry.set_alias("mood", "live", 1)
    assert registry.resolve("mood").number == 1
    assert not any(path.is_symlink() for path in root.rglob("*"))
    registry.delete_task("mood")
    assert snapshot(outside) == before
