"""MemoryStore: the Store port without a disk, held to the same contract as FileStore by test_store.py."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.errors import Conflict, NotFound
from app.registry.store import Entry


class MemoryStore:
    def __init__(self) -> None:
        self._key_to_content: dict[str, bytes] = {}
        self._key_to_change: dict[str, tuple[int, float]] = {}
        self._serial = itertools.count(1)
        self._writers = threading.Lock()

    def entries(self, folder: str) -> dict[str, Entry]:
        prefix = f"{folder}/" if folder else ""
        names = {key[len(prefix) :].split("/")[0] for key in list(self._key_to_content) if key.startswith(prefix)}
        found = {name: self.entry(prefix + name) for name in names if not name.startswith(".")}
        return {name: entry for name, entry in found.items() if entry is not None}

    def entry(self, key: str) -> Entry | None:
        content = self._key_to_content.get(key)
        is_folder = not key or any(other.startswith(f"{key}/") for other in list(self._key_to_content))
        if content is None and not is_folder:
            return None
        serial, changed_at = self._key_to_change.get(key, (0, 0.0))
        return Entry(content is None, len(content or b""), serial, time.monotonic() - changed_at)

    def read(self, key: str) -> bytes:
        try:
            return self._key_to_content[key]
        except KeyError as error:
            raise NotFound(f"nothing is stored under {key}") from error

    def create(self, folder: str, name_to_content: Mapping[str, bytes]) -> None:
        if self.entry(folder) is not None:
            raise Conflict(f"{folder} exists already")
        self._key_to_content |= {f"{folder}/{name}": content for name, content in name_to_content.items()}
        self._touch(folder, *(f"{folder}/{name}" for name in name_to_content))

    def replace(self, key: str, content: bytes) -> None:
        self._key_to_content = {**self._key_to_content, key: content}
        self._touch(key)

    def remove(self, key: str) -> None:
        kept = {k: v for k, v in self._key_to_content.items() if k != key and not k.startswith(f"{key}/")}
        if len(kept) < len(self._key_to_content):
            self._key_to_content = kept
            self._touch(key)

    @contextmanager
    def lock(self, *, may_make_root: bool = True) -> Iterator[None]:
        with self._writers:
            yield

    def sweep(self) -> int:
        return 0

    def _touch(self, *keys: str) -> None:
        change = (next(self._serial), time.monotonic())
        for key in keys:
            self._key_to_change[key] = change
            self._key_to_change[key.rpartition("/")[0]] = change
