"""LayeredStore: a writable folder over one that is only read, such as the demo tasks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from app.registry.stores.store import Entry, FileStore, Store


class LayeredStore:
    """Every task is read from one layer as a whole.

    It is the lower one's until something in it changes. Then all of it is copied up first, in one step, and the lower
    copy no longer counts: a deleted task keeps a file in the upper layer, so it stays deleted.
    """

    def __init__(self, upper: Store, lower: Store) -> None:
        self._upper = upper
        self._lower = lower

    def __repr__(self) -> str:
        return f"LayeredStore({self._upper!r}, {self._lower!r})"

    def entries(self, folder: str) -> dict[str, Entry]:
        if folder:
            return self._layer_of(folder).entries(folder)
        return self._lower.entries("") | self._upper.entries("")

    def entry(self, key: str) -> Entry | None:
        return self._layer_of(key).entry(key) if key else self._upper.entry("")

    def read(self, key: str) -> bytes:
        return self._layer_of(key).read(key)

    def create(self, folder: str, name_to_content: Mapping[str, bytes]) -> None:
        self._copy_up(folder)
        self._upper.create(folder, name_to_content)

    def replace(self, key: str, content: bytes) -> None:
        self._copy_up(key)
        self._upper.replace(key, content)

    def remove(self, key: str) -> None:
        self._copy_up(key)
        self._upper.remove(key)

    def lock(self, *, may_make_root: bool = True) -> AbstractContextManager[None]:
        return self._upper.lock(may_make_root=may_make_root)

    def sweep(self) -> int:
        return self._upper.sweep()

    def _layer_of(self, key: str) -> Store:
        return self._lower if self._upper.entry(_task_of(key)) is None else self._upper

    def _copy_up(self, key: str) -> None:
        task = _task_of(key)
        if self._layer_of(task) is self._lower and (files := _read_all(self._lower, task)):
            self._upper.create(task, {name.removeprefix(f"{task}/"): content for name, content in files.items()})


def open_store(folder: Path, below: Path | None) -> Store:
    """Args: below: a folder that is only read, if any."""
    own = FileStore(folder)
    return own if below is None else LayeredStore(own, FileStore(below))


def _task_of(key: str) -> str:
    return key.partition("/")[0]


def _read_all(store: Store, folder: str) -> dict[str, bytes]:
    """Keys to contents of all files under a folder."""
    files: dict[str, bytes] = {}
    for name, entry in store.entries(folder).items():
        key = f"{folder}/{name}"
        files |= _read_all(store, key) if entry.is_folder else {key: store.read(key)}
    return files
