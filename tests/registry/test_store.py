"""What a Store promises, tested on the one on disk and on the one in memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from app.errors import Conflict, NotFound
from app.registry.store import FileStore, Store
from tests.support.memory_store import MemoryStore


@pytest.fixture(params=["file", "memory", "layered"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "layered":
        return FileStore(tmp_path / "registry", tmp_path / "below")
    return FileStore(tmp_path / "registry") if request.param == "file" else MemoryStore()


def test_an_empty_store_has_no_entries_and_reads_nothing(store: Store) -> None:
    assert store.entries("") == {}
    assert store.entries("a/1") == {}
    assert store.entry("a") is None
    with pytest.raises(NotFound):
        store.read("a/aliases.json")


def test_a_created_folder_has_its_files_and_their_sizes(store: Store) -> None:
    store.create("a/1", {"x": b"one", "y": b""})
    assert store.read("a/1/x") == b"one"
    entries = store.entries("a/1")
    assert {name: (entry.is_folder, entry.num_bytes) for name, entry in entries.items()} == {
        "x": (False, 3),
        "y": (False, 0),
    }
    assert [(name, entry.is_folder) for name, entry in store.entries("").items()] == [("a", True)]


def test_a_created_folder_may_hold_folders(store: Store) -> None:
    store.create("a", {"aliases.json": b"1", "2/x": b"two", "2/deep/y": b"three"})
    assert (store.read("a/aliases.json"), store.read("a/2/x"), store.read("a/2/deep/y")) == (b"1", b"two", b"three")
    assert sorted(store.entries("a")) == ["2", "aliases.json"]


def test_a_taken_folder_is_a_conflict_and_stays_as_it_was(store: Store) -> None:
    store.create("a/1", {"x": b"one"})
    with pytest.raises(Conflict):
        store.create("a/1", {"x": b"two"})
    assert store.read("a/1/x") == b"one"
    assert list(store.entries("a")) == ["1"]


def test_a_replaced_file_has_the_last_content_and_needs_no_folder(store: Store) -> None:
    store.replace("a/aliases.json", b"1")
    store.replace("a/aliases.json", b"22")
    assert store.read("a/aliases.json") == b"22"
    assert list(store.entries("a")) == ["aliases.json"]


def test_a_removed_folder_is_gone_with_its_files_and_removing_nothing_is_allowed(store: Store) -> None:
    store.create("a/1", {"x": b"one"})
    store.create("a/2", {"x": b"two"})
    store.remove("a/1")
    store.remove("a/1")
    store.remove("b/7")
    assert list(store.entries("a")) == ["2"]
    with pytest.raises(NotFound):
        store.read("a/1/x")


def test_a_removed_file_leaves_its_neighbors(store: Store) -> None:
    store.create("a/1", {"x": b"one", "y": b"two"})
    store.remove("a/1/x")
    assert list(store.entries("a/1")) == ["y"]


@pytest.mark.parametrize("change", ["create", "replace", "remove"])
def test_a_folders_stamp_changes_with_the_names_and_files_in_it(store: Store, change: str) -> None:
    store.create("a/1", {"x": b"one"})
    store.replace("a/aliases.json", b"1")
    before = store.entries("")["a"].stamp
    if change == "create":
        store.create("a/2", {"x": b"one"})
    elif change == "replace":
        store.replace("a/aliases.json", b"2")
    else:
        store.remove("a/1")
    assert store.entries("")["a"].stamp != before


def test_an_entry_knows_how_long_it_has_been_unchanged(store: Store) -> None:
    store.replace("a/aliases.json", b"1")
    time.sleep(0.05)
    entry = store.entry("a/aliases.json")
    assert entry is not None
    assert 0.04 < entry.age_s < 5


def test_the_lock_lets_one_writer_in_at_a_time(store: Store) -> None:
    num_inside, most_inside = 0, 0

    def work() -> None:
        nonlocal num_inside, most_inside
        for _ in range(50):
            with store.lock():
                num_inside += 1
                most_inside = max(most_inside, num_inside)
                num_inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_inside == 1


def test_readers_never_see_a_half_written_file(store: Store) -> None:
    contents = [bytes([digit]) * 200_000 for digit in range(2)]
    store.replace("a/x", contents[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("a/x"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        store.replace("a/x", contents[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def _hold_lock(root: Path, held: multiprocessing.synchronize.Event, release: multiprocessing.synchronize.Event) -> None:
    with FileStore(root).lock():
        held.set()
        release.wait(20)


def test_the_lock_holds_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(tmp_path, held, release))
    other.start()
    assert held.wait(20)
    entered = threading.Event()

    def enter() -> None:
        with FileStore(tmp_path).lock():
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.2)
    release.set()
    assert entered.wait(20)
    thread.join()
    other.join()


def test_hidden_names_are_not_listed_and_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.create("a/1", {"x": b"one"})
    leftovers = [
        tmp_path / ".tmp-1",
        tmp_path / "a" / ".tmp-2",
        tmp_path / "a" / ".deleted-3",
        tmp_path / "a" / "1" / ".tmp-4",
    ]
    for folder in leftovers:
        folder.mkdir()
        (folder / "half").write_bytes(b"h")
    (tmp_path / "a" / ".hidden").mkdir()
    assert list(store.entries("a")) == ["1"]
    assert list(store.entries("a/1")) == ["x"]
    with store.lock():
        assert store.sweep() == 4
        assert store.sweep() == 0
    assert not any(folder.exists() for folder in leftovers)
    assert (tmp_path / "a" / ".hidden").exists()
    assert store.read("a/1/x") == b"one"


def test_a_write_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    store.create("a/1", {"x": b"one"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.create("a/2", {"x": b"two"})
    with pytest.raises(OSError, match="No space left"):
        store.replace("a/1/x", b"two")
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["1", "x"]
    assert store.read("a/1/x") == b"one"


def test_every_byte_and_every_name_is_fsynced_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a power cut: files, their folder, the rename, the folder it is in."""
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def seen_fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('-')[0]}")
        fsync(descriptor)

    def seen_rename(self: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    (tmp_path / "a").mkdir()
    FileStore(tmp_path).create("a/1", {"x": b"one", "y": b"two"})
    assert steps == ["fsync x", "fsync y", "fsync .tmp", "rename to 1", "fsync a"]
