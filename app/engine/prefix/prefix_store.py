"""PrefixStore: keys and values of task prompts in files, for those that the cache in memory has dropped.

Memory holds the prefixes of some hundred tasks. A file is read in a small part of the time that computing takes, so the
others need not be computed each time they are asked for. Only task prompts are kept, never a request's text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import BinaryIO

import torch

from app.errors import InvalidInput
from app.task_prompt import is_finite

logger = logging.getLogger(__name__)

MAX_PENDING = 16
"""Prefixes that wait to be written; what comes faster is kept another time."""
DESCRIPTION_FILE, SUFFIX, UNFINISHED = "computed_by.json", ".kv", ".softswap-"
ABANDONED_S = 3600.0
LOOK_INTERVAL_S = 10.0
"""Between two looks at what other servers did, while nothing has to go."""
MAX_LOOKING = 0.05
"""The fraction of its time the writer may spend on looking, which takes from the engine: 0.1 s for 10,000 files."""
FULL_S = 300.0
"""How long the disk counts as full after a write that failed."""

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_FOLDER_NAME, _FILE_NAME = re.compile(r"[0-9a-f]{16}"), re.compile(rf"[0-9a-f]{{64}}\{SUFFIX}")


class PrefixStore:
    """Called by the engine's thread; a thread of its own writes, and looks at what other servers did.

    A file is the sha256 of its rows and then the rows, so that a torn or rotten one is found out; one that cannot be
    read is a prefix not kept. Files are found by those who would compute the same numbers: they lie in a folder named
    after all that these depend on. When they are too many, the least recently used go, whoever they belong to.

    Args:
        folder: made if it is not there; several servers may share it.
        max_bytes: of all files.
        row_size: numbers in a row; see `KVCache.load_rows`.
        dtype: of the rows.
        computed_by: what the numbers depend on besides the prompt: backbone, dtype, code, device.
        clock: monotonic seconds; tests give their own.

    Attributes:
        writer: its thread.
        num_bytes: of all files, those of other servers as of the last look.

    Raises: InvalidInput: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        row_size: int,
        dtype: torch.dtype,
        computed_by: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._row_size, self._dtype, self._max_bytes = row_size, dtype, max_bytes
        self._clock = clock
        self._lock = Lock()
        self._path_to_bytes: OrderedDict[Path, int] = OrderedDict()
        self.num_bytes = 0
        self._next_look_s = self._fresh_until_s = self._full_until_s = -math.inf
        described = json.dumps(dict(computed_by), indent=1, sort_keys=True)
        self._folder = folder / hashlib.sha256(described.encode()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / DESCRIPTION_FILE).write_text(described, encoding="utf-8")
            self._look()
        except OSError as error:
            raise InvalidInput(f"prefix_store cannot be written to: {error.strerror}", param="prefix_store") from error
        self._pending: set[str] = set()
        self._last: tuple[str, torch.Tensor] | None = None
        self.writer = ThreadPoolExecutor(1, "prefix-store")
        logger.info("prefix store: %d files, %.1f MB, in %s", len(self), self.num_bytes / 1e6, folder)

    def __len__(self) -> int:
        return len(self._path_to_bytes)

    def __contains__(self, digest: str) -> bool:
        """Whether the prompt's rows are kept, or will be soon."""
        return digest in self._pending or self._path(digest) in self._path_to_bytes

    def has_room(self, num_rows: int) -> bool:
        """Whether that many more rows could be kept now without dropping any that are kept.

        For a while after a failed write nothing could; `keep` may be called all the same.
        """
        if self._clock() < self._full_until_s:
            return False
        added = (1 + len(self._pending)) * num_rows * self._row_size * self._dtype.itemsize
        return len(self._pending) < MAX_PENDING and self.num_bytes + added <= self._max_bytes

    def expect(self, digest: str) -> None:
        """Let the system read the file in the background: it will be asked for soon."""
        path = self._path(digest)
        if path in self._path_to_bytes and hasattr(os, "posix_fadvise"):
            with suppress(OSError), path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def find(self, digest: str, num_rows: int) -> torch.Tensor | None:
        """Rows (num_rows, row_size) of the prompt with this digest; None if they are not kept."""
        if self._last is not None and self._last[0] == digest:
            return self._last[1]  # one that waits for room is asked for again in every step
        if self._clock() >= self._next_look_s:
            self._next_look_s = self._clock() + LOOK_INTERVAL_S
            self.writer.submit(self._tidy)
        path = self._path(digest)
        is_known = path in self._path_to_bytes
        try:  # if it is not known, another server may have written it
            with path.open("rb", buffering=0) as file:
                rows = self._read(file, num_rows)
            os.utime(path)
        except FileNotFoundError:
            if is_known:
                with self._lock:
                    self._note(path, 0)
            return None
        except (OSError, ValueError) as error:
            logger.warning("prefix store: %s is not used: %s", path.name, error)
            self.forget(digest)
            return None
        with self._lock:
            self._note(path, _CHECKSUM_BYTES + rows.nbytes)
        self._last = (digest, rows)
        return rows

    def keep(self, digest: str, copy_rows: Callable[[], torch.Tensor]) -> None:
        """Write the prompt's rows soon, unless they are kept already or too many others wait.

        Args: copy_rows: (num_rows, row_size) on any device, which no longer change; called now or not at all.
        """
        if digest not in self and len(self._pending) < MAX_PENDING:
            self._pending.add(digest)
            self.writer.submit(self._write, digest, copy_rows())

    def forget(self, digest: str) -> None:
        """Let no server find it again."""
        self._last = None
        with self._lock:
            self._pending.discard(digest)
        self._remove(self._path(digest))

    def close(self) -> None:
        """Finish what is being written."""
        self.writer.shutdown()
        self._next_look_s = math.inf

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}{SUFFIX}"

    def _read(self, file: BinaryIO, num_rows: int) -> torch.Tensor:
        rows = torch.empty(num_rows, self._row_size, dtype=self._dtype)
        content = _bytes_of(rows)
        checksum = file.read(_CHECKSUM_BYTES)
        if file.readinto(content) != len(content) or file.read(1):  # type: ignore[attr-defined]
            raise ValueError("it has another size")
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("its checksum is another one")
        return rows

    def _write(self, digest: str, rows: torch.Tensor) -> None:
        try:
            values = rows.cpu().contiguous()
            if not is_finite(values) or _CHECKSUM_BYTES + values.nbytes > self._max_bytes:
                return
            self._put(digest, hashlib.sha256(_bytes_of(values)).digest() + _bytes_of(values))
        except OSError as error:
            logger.warning("prefix store: cannot keep %s: %s", digest, error.strerror)
            self._full_until_s = self._clock() + FULL_S
        finally:
            with self._lock:
                self._pending.discard(digest)

    def _put(self, digest: str, content: bytes) -> None:
        path = self._path(digest)
        with NamedTemporaryFile(dir=self._folder, prefix=UNFINISHED, delete=False) as file:
            unfinished = Path(file.name)
            try:
                file.write(content)
                file.close()
                with self._lock:
                    if digest not in self._pending:  # forgotten in the meantime
                        return
                    unfinished.rename(path)
                    self._note(path, len(content))
            finally:
                unfinished.unlink(missing_ok=True)
        if self.num_bytes > self._max_bytes or self._clock() >= self._next_look_s:
            self._tidy()

    def _tidy(self) -> None:
        """Let the least recently used files go while there are too many, going by what is there now."""
        if self._clock() >= self._fresh_until_s:
            with suppress(OSError):
                self._look()
        while True:
            with self._lock:
                if self.num_bytes <= self._max_bytes:
                    return
                oldest = next(iter(self._path_to_bytes))
            self._remove(oldest)

    def _look(self) -> None:
        began_s = self._clock()
        self._next_look_s = began_s + LOOK_INTERVAL_S
        path_to_bytes = OrderedDict(kept_files(self._folder.parent))
        with self._lock:
            self._path_to_bytes = path_to_bytes
            self.num_bytes = sum(path_to_bytes.values())
        ended_s = self._clock()
        self._fresh_until_s = ended_s + (ended_s - began_s) / MAX_LOOKING

    def _remove(self, path: Path) -> None:
        with self._lock:
            self._note(path, 0)
        with suppress(OSError):
            path.unlink()

    def _note(self, path: Path, num_bytes: int) -> None:
        """A file was used last of all, or is gone if it has no bytes. Call it under the lock."""
        self.num_bytes += num_bytes - self._path_to_bytes.pop(path, 0)
        if num_bytes:
            self._path_to_bytes[path] = num_bytes


def _bytes_of(rows: torch.Tensor) -> memoryview:
    """The memory of contiguous rows on the host."""
    return rows.view(torch.uint8).numpy().data.cast("B")


def kept_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files and their sizes, the least recently used first. What a crash left unfinished is removed."""
    found = []
    for item in _own_items(folder):
        with suppress(OSError):  # another server's may just have got its name
            status = item.stat()
            if _FILE_NAME.fullmatch(item.name):
                found.append((status.st_mtime_ns, item.path, status.st_size))
            elif item.name.startswith(UNFINISHED) and status.st_mtime < time.time() - ABANDONED_S:
                os.unlink(item.path)
    for _, path, num_bytes in sorted(found):
        yield Path(path), num_bytes


def _own_items(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in folders that stores made: others may have put folders of theirs next to them."""
    for own in folder.iterdir():
        if _FOLDER_NAME.fullmatch(own.name) and os.path.isfile(own / DESCRIPTION_FILE):
            with suppress(OSError), os.scandir(own) as items:
                yield from items
