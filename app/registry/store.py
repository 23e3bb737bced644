"""Store: keys to bytes, durably. The registry's only way to the disk.

A key is a path of names joined by "/"; names that begin with "." belong to the store and are never listed. What a
method has done when it returns survives a crash; what it had not finished leaves nothing that a reader could see.
Nothing outside the store is read, written or removed: a symbolic link in it is listed as one and never followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from app.errors import Conflict, CorruptPrompt, NotFound, RegistryUnavailable

TEMPORARY, DELETED = ".tmp-", ".deleted-"
_COARSEST_CLOCK_S = 2.0
"""Filesystems round times of change to as much as this."""
LINK_ADVICE = "is a link, and links in a registry are not followed; put the files themselves there (cp -rL)"
READ_ONLY_ERRNOS = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says about one name.

    Attributes:
        is_folder: False for a link, whatever it points to.
        stamp: changes with the content (for a folder, with the names inside), but at most once within the resolution of
            the filesystem's clock.
        age_s: seconds since the last change of content or of the name.
    """

    is_folder: bool
    num_bytes: int
    stamp: Hashable
    age_s: float
    is_link: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether the next change is certain to change the stamp."""
        return self.age_s > _COARSEST_CLOCK_S


class Store(Protocol):
    """The port. `FileStore` implements it on a filesystem; tests also run against one in memory.

    A key that leads through a link raises CorruptPrompt if it is to be read, RegistryUnavailable if it is to change.
    """

    def entries(self, folder: str) -> dict[str, Entry]:
        """Names directly inside a folder, "" being the root; none if there is no such folder."""

    def entry(self, key: str) -> Entry | None:
        """One name, "" being the root that is written to; None if there is nothing."""

    def read(self, key: str) -> bytes:
        """Raises NotFound."""

    def create(self, folder: str, name_to_content: Mapping[str, bytes]) -> None:
        """Make a folder with these files, whose names may contain folders of it, all or nothing.

        Raises Conflict: the name is taken.
        """

    def replace(self, key: str, content: bytes) -> None:
        """Set one file's content, all or nothing. A missing folder is made."""

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with all it holds, all or nothing; nothing happens if there is none."""

    def lock(self, *, may_make_root: bool = True) -> AbstractContextManager[None]:
        """Hold off every other writer, in this process and in others. Not reentrant.

        Args: may_make_root: without it a missing root stays missing, and no one is held off.
        """

    def sweep(self) -> int:
        """Clear what crashed writers left; to be called under the lock. Returns how many leftovers there were."""


class FileStore:
    """Files under a folder, which is made by the first write.

    Every write goes to a temporary name in the same folder, is fsynced, renamed, and its folder fsynced (Pillai et al.,
    "All File Systems Are Not Created Equal", OSDI 2014).

    Args:
        root: may itself be a link, or lie behind one.
        below: a folder that is only read, such as the demo tasks, where an installer may have put links to files. A
            task is its own until something in it changes. Then all of it is copied up first, in one step, and the lower
            copy no longer counts: a deleted task keeps a file in the upper folder, so it stays deleted.
    """

    def __init__(self, root: Path, below: Path | None = None) -> None:
        self._root = Path(root)
        self._below = below

    def entries(self, folder: str) -> dict[str, Entry]:
        found = _entries(self._place_to_read(folder), follows_links=self._layer_of(folder) != self._root)
        return found if folder or self._below is None else _entries(str(self._below), follows_links=True) | found

    def entry(self, key: str) -> Entry | None:
        layer = self._layer_of(key)
        return _entry(f"{layer}/{key}", time.time(), follows_links=not key or layer != self._root)

    def read(self, key: str) -> bytes:
        try:
            with open(self._place_to_read(key), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"nothing is stored under {key}") from error

    def create(self, folder: str, name_to_content: Mapping[str, bytes]) -> None:
        target = self._place_to_write(folder)
        if os.path.lexists(target):
            raise Conflict(f"{folder} exists already")
        self._create(target, name_to_content)

    def replace(self, key: str, content: bytes) -> None:
        with _renamed_to(self._place_to_write(key)) as temporary:
            _write_file(temporary, content)

    def remove(self, key: str) -> None:
        target = self._place_to_write(key)
        hidden = target.parent / f"{DELETED}{uuid.uuid4().hex}"
        try:
            target.rename(hidden)
        except (FileNotFoundError, NotADirectoryError):
            return
        _sync_folder(hidden.parent)
        _discard(hidden)

    @contextmanager
    def lock(self, *, may_make_root: bool = True) -> Iterator[None]:
        """An exclusive flock on `.lock`. A folder that cannot be written has no writers, and needs none."""
        descriptor = self._open_lock(may_make_root=may_make_root)
        if descriptor is None:
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def sweep(self) -> int:
        """Looks into the root, the tasks and the versions: wherever something is written."""
        num_leftovers, level = 0, [str(self._root)] if self._root.is_dir() else []
        for _ in range(3):
            items = [item for folder in level for item in os.scandir(folder)]
            leftovers = [item for item in items if item.name.startswith((TEMPORARY, DELETED))]
            for item in leftovers:
                _discard(Path(item))
            num_leftovers += len(leftovers)
            folders = [item for item in items if item.is_dir(follow_symlinks=False)]
            level = [item.path for item in folders if not item.name.startswith(".")]
        return num_leftovers

    def _place_to_read(self, key: str) -> str:
        """Raises CorruptPrompt: a link is there or on the way."""
        layer = self._layer_of(key)
        if layer == self._root and (link := _first_link(layer, key)):
            raise CorruptPrompt(f"{link} {LINK_ADVICE}")
        return f"{layer}/{key}"

    def _place_to_write(self, key: str) -> Path:
        """In the upper layer, where all of the task is by then. Raises RegistryUnavailable: a link is on the way."""
        if link := _first_link(self._root, key.rpartition("/")[0]):
            raise RegistryUnavailable(f"{link} {LINK_ADVICE}", param="task")
        self._copy_up(key)
        return self._root / key

    def _layer_of(self, key: str) -> Path:
        """The folder that a key's task is read from."""
        task = key.partition("/")[0]
        if self._below is None or not task or os.path.lexists(f"{self._root}/{task}"):
            return self._root
        return self._below

    def _copy_up(self, key: str) -> None:
        task = key.partition("/")[0]
        if self._layer_of(task) != self._root and (files := self._read_all(task)):
            self._create(self._root / task, {name.removeprefix(f"{task}/"): each for name, each in files.items()})

    def _read_all(self, folder: str) -> dict[str, bytes]:
        """Keys to contents of all files under a folder."""
        files: dict[str, bytes] = {}
        for name, entry in self.entries(folder).items():
            key = f"{folder}/{name}"
            files |= self._read_all(key) if entry.is_folder else {key: self.read(key)}
        return files

    def _create(self, folder: Path, name_to_content: Mapping[str, bytes]) -> None:
        with _renamed_to(folder) as temporary:
            temporary.mkdir()
            for name, content in name_to_content.items():
                _make_folder((temporary / name).parent)
                _write_file(temporary / name, content)
            for folder_written in {temporary, *((temporary / name).parent for name in name_to_content)}:
                _sync_folder(folder_written)

    def _open_lock(self, *, may_make_root: bool) -> int | None:
        try:
            if may_make_root:
                _make_folder(self._root)
            return os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RegistryUnavailable(f".lock {LINK_ADVICE}") from error
            is_missing = isinstance(error, FileNotFoundError) and not may_make_root
            if is_missing or error.errno in READ_ONLY_ERRNOS:
                return None
            raise


def _entries(folder: str, *, follows_links: bool) -> dict[str, Entry]:
    now = time.time()
    try:
        with os.scandir(folder) as found:
            names = [item for item in found if not item.name.startswith(".")]
            entries = {item.name: _entry(item, now, follows_links=follows_links) for item in names}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: entry for name, entry in entries.items() if entry is not None}


def _entry(place: os.DirEntry[str] | str, now: float, *, follows_links: bool) -> Entry | None:
    """None also for a link that is followed to nothing."""
    try:
        facts = (
            os.stat(place, follow_symlinks=follows_links)
            if isinstance(place, str)
            else place.stat(follow_symlinks=follows_links)
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    age_s = now - max(facts.st_mtime, facts.st_ctime)
    stamp = (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_size)
    return Entry(stat.S_ISDIR(facts.st_mode), facts.st_size, stamp, age_s, stat.S_ISLNK(facts.st_mode))


def _first_link(root: Path, key: str) -> str | None:
    """The shortest beginning of a key that is a link."""
    beginnings = accumulate(key.split("/"), "{}/{}".format)
    return next((each for each in beginnings if each and os.path.islink(f"{root}/{each}")), None)


@contextmanager
def _renamed_to(target: Path) -> Iterator[Path]:
    """A temporary name for what is to become `target`, durably, when the block ends; an error leaves no trace."""
    _make_folder(target.parent)
    temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        _discard(temporary)
        raise
    _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Free the space of what is already invisible; what cannot be freed now is left to the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
