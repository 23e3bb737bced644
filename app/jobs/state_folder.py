"""StateFolder: where one server keeps its files, jobs and unfinished work. Losing it never affects the registry."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from typing import BinaryIO

from app.errors import CorruptState, NotFound, TuningUnavailable
from app.registry.store import FileStore

FILES, RUNS = "files", "runs"
DATABASE_FILE, LOCK_FILE, BACKBONES_FILE = "jobs.sqlite3", "server.lock", "backbones"
_DIGEST_BYTES = 32


class StateFolder:
    """Held by one server at a time, by a lock that ends with its process; everything in it is written durably.

    `files/<sha256>` are uploads, `runs/<job>` the states that unfinished jobs continue from, `jobs.sqlite3` the tables,
    `backbones` the fingerprints of all backbones that a server with this folder had.
    """

    def __init__(self, path: Path) -> None:
        """Raises TuningUnavailable: another server holds the folder, or it cannot be written."""
        self.path = path
        self._store = FileStore(path)
        self._lock = _lock(path)
        with self._store.lock():
            self._store.sweep()

    @property
    def database_path(self) -> Path:
        return self.path / DATABASE_FILE

    def close(self) -> None:
        """Release it for another server."""
        self._lock.close()

    def note_backbone(self, fingerprint: str) -> None:
        """Jobs of other backbones are another server's, of which this folder knows nothing."""
        noted = read_backbones(self.path) or frozenset()
        if fingerprint not in noted:
            self._replace(BACKBONES_FILE, "".join(f"{each}\n" for each in sorted({*noted, fingerprint})).encode())

    def put_file(self, content: bytes) -> str:
        """Keep an upload under its sha256, which is returned. Doing so repairs a copy that was damaged on the disk.

        Raises TuningUnavailable: the folder is gone.
        """
        digest = hashlib.sha256(content).hexdigest()
        self._replace(f"{FILES}/{digest}", content)
        return digest

    def read_file(self, digest: str) -> bytes:
        """Raises CorruptState: it is gone, or not what was uploaded."""
        try:
            content = self._store.read(f"{FILES}/{digest}")
        except NotFound:
            raise CorruptState("the file's content is missing from the server's state folder") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise CorruptState("the file's content on the server's disk is damaged")
        return content

    def remove_file(self, digest: str) -> None:
        self._store.remove(f"{FILES}/{digest}")

    def save_run(self, job_id: str, content: bytes) -> None:
        """Replace what the job would continue from. Raises TuningUnavailable: the folder is gone."""
        self._replace(f"{RUNS}/{job_id}", hashlib.sha256(content).digest() + content)

    def read_run(self, job_id: str) -> bytes | None:
        """What was saved last; None if nothing was. Raises CorruptState."""
        try:
            stored = self._store.read(f"{RUNS}/{job_id}")
        except NotFound:
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise CorruptState("the job's saved state on the server's disk is damaged")
        return content

    def remove_run(self, job_id: str) -> None:
        self._store.remove(f"{RUNS}/{job_id}")

    def keep_only(self, *, digests: set[str], job_ids: set[str]) -> None:
        """Remove what a crash may leave: contents that no upload names, states of jobs that have ended."""
        for folder, names in ((FILES, digests), (RUNS, job_ids)):
            for name in self._store.entries(folder).keys() - names:
                self._store.remove(f"{folder}/{name}")

    def _replace(self, key: str, content: bytes) -> None:
        if not self.path.is_dir():  # creating it would also create the registry's folder, which it usually is in
            raise TuningUnavailable("the server's state folder is gone; put it back, or restart the server")
        self._store.replace(key, content)


def read_backbones(state: Path) -> frozenset[str] | None:
    """What `note_backbone` noted; None if nothing did. Args: state: the folder, whoever holds it."""
    try:
        return frozenset((state / BACKBONES_FILE).read_text().split())
    except FileNotFoundError:
        return None


def _lock(path: Path) -> BinaryIO:
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK_FILE).open("ab")
    except OSError as error:
        raise TuningUnavailable(
            f"this server cannot tune: its state folder cannot be written ({error.strerror}); set SOFTSWAP_STATE"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise TuningUnavailable(
            "another server tunes for this registry; send files and jobs to it, or give this one a SOFTSWAP_STATE"
        ) from None
    return file
