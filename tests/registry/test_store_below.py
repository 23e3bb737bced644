"""A user's own tasks over tasks that are only read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from app.errors import NotFound, RegistryUnavailable
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def below(tmp_path: Path, backbone: Backbone) -> Path:
    """Tasks a, of two versions, and b. No one may write there."""
    registry = Registry(FileStore(tmp_path / "below"), backbone)
    for task, seed in (("a", 1), ("a", 2), ("b", 3)):
        registry.publish(task, Publication(random_prompt(backbone, seed=seed)))
    return tmp_path / "below"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def registry(below: Path, own: Path, backbone: Backbone) -> Registry:
    return Registry(FileStore(own, below), backbone)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(registry: Registry) -> list[str]:
    return [summary.task for summary in registry.tasks()]


def test_tasks_of_both_are_served_and_looking_at_them_copies_nothing(
    registry: Registry, own: Path, backbone: Backbone
) -> None:
    registry.publish("c", Publication(random_prompt(backbone)))
    assert names(registry) == ["a", "b", "c"]
    assert registry.prompt(registry.resolve("a@1")).digest == random_prompt(backbone, seed=1).digest
    assert sorted(path.name for path in own.iterdir()) == [".lock", "c"]


def test_a_change_copies_the_whole_task_up_and_writes_nothing_below(
    registry: Registry, below: Path, own: Path, backbone: Backbone
) -> None:
    before = contents(below)
    assert registry.publish("a", Publication(random_prompt(backbone, seed=9))).id == "a@3"
    registry.set_alias("b", "canary", 1)
    assert contents(below) == before
    for again in (registry, Registry(FileStore(own), backbone)):
        assert [version.number for version in again.versions("a")] == [1, 2, 3]
        assert again.prompt(again.resolve("a@1")).digest == random_prompt(backbone, seed=1).digest
        assert again.task("b").aliases == {"live": 1, "canary": 1}


def test_what_is_deleted_stays_deleted_for_the_next_process(
    registry: Registry, below: Path, own: Path, backbone: Backbone
) -> None:
    registry.delete_version("a", 1)
    registry.delete_task("b")
    again = Registry(FileStore(own, below), backbone)
    assert names(again) == ["a"]
    assert [version.number for version in again.versions("a")] == [2]
    with pytest.raises(NotFound):
        again.resolve("b")
    assert again.publish("b", Publication(random_prompt(backbone))).id == "b@2"


def test_a_running_registry_sees_what_another_process_copied_up(
    registry: Registry, below: Path, own: Path, backbone: Backbone
) -> None:
    Registry(FileStore(own, below), backbone).publish("a", Publication(random_prompt(backbone, seed=9)))
    registry.refresh()
    assert registry.resolve("a").number == 3


def test_an_unchanged_task_is_the_lower_one_as_it_is_now(
    registry: Registry, below: Path, own: Path, backbone: Backbone
) -> None:
    Registry(FileStore(below), backbone).publish("a", Publication(random_prompt(backbone, seed=9)))
    registry.refresh()
    assert registry.resolve("a").number == 3


def test_own_tasks_stay_while_their_folder_is_gone_and_nothing_takes_its_place(
    registry: Registry, own: Path, backbone: Backbone
) -> None:
    registry.set_alias("a", "live", 1)
    registry.delete_task("b")
    registry.publish("c", Publication(random_prompt(backbone)))
    own.rename(own.with_name("unmounted"))
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match="folder is gone"):
            registry.refresh()
        with pytest.raises(RegistryUnavailable, match="folder is gone"):
            registry.publish("c", Publication(random_prompt(backbone)))
        assert names(registry) == ["a", "c"]
        assert registry.resolve("a").number == 1
        assert not own.exists()
    own.with_name("unmounted").rename(own)
    registry.refresh()
    assert names(registry) == ["a", "c"]
    assert registry.publish("c", Publication(random_prompt(backbone))).id == "c@2"


def test_a_folder_that_goes_while_it_is_read_is_gone_too(
    registry: Registry, own: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.set_alias("a", "live", 1)
    Registry(FileStore(own), backbone).set_alias("a", "canary", 1)
    monkeypatch.setattr(FileStore, "lock", _losing(own, FileStore.lock))
    with pytest.raises(RegistryUnavailable, match="folder is gone"):
        registry.refresh()
    assert registry.resolve("a").number == 1
    assert not own.exists()


def _losing(folder: Path, lock: Callable[..., AbstractContextManager[None]]) -> object:
    def lose_and_lock(self: FileStore, **options: bool) -> AbstractContextManager[None]:
        folder.rename(folder.with_name("unmounted"))
        return lock(self, **options)

    return lose_and_lock


def test_the_folder_is_made_by_the_first_write(registry: Registry, own: Path) -> None:
    registry.refresh()
    assert names(registry) == ["a", "b"]
    assert not own.exists()
    registry.set_alias("a", "live", 1)
    assert registry.resolve("a").number == 1
    assert sorted(path.name for path in own.iterdir()) == [".lock", "a"]


def test_if_nothing_can_be_written_all_is_served_and_a_change_is_refused(
    below: Path, own: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    registry = Registry(FileStore(own, below), backbone)
    assert names(registry) == ["a", "b"]
    with pytest.raises(RegistryUnavailable, match="cannot be written"):
        registry.set_alias("a", "live", 1)
    assert registry.resolve("a").number == 2
