"""UploadStore: uploaded examples, each file checked from its first line to its last before it is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, delete, func, insert, select

from app.errors import InvalidInput, NoSuchFile
from app.jobs.database import Database, files, make_record
from app.jobs.job import new_id
from app.jobs.state_folder import StateFolder
from app.measure.dataset import Dataset
from app.measure.example_file import read_dataset, read_unlabeled, read_upload
from app.measure.reading.look import FileLook

MAX_FILE_BYTES = 100 * 2**20
MAX_ALL_FILES_BYTES = 2 * 2**30
MAX_FILES = 10_000
MAX_FILENAME_CHARS = 255


class Purpose(StrEnum):
    """What a file is for, in OpenAI's words."""

    TUNING = "fine-tune"
    """Examples."""
    INPUTS = "user_data"
    """Inputs alone, without answers."""
    RESULTS = "fine-tune-results"
    """The figures of a job, written by the server."""


@dataclass(frozen=True)
class TrainingFile:
    """Attributes:
    filename: the caller's; its ending determines the format, and messages show it.
    digest: sha256 of the content.
    num_examples, num_duplicates: of a file of results its rows, and 0; of one whose columns are to be named its rows,
        and 0.
    created_at: seconds since 1970.
    look: how it was read (`FileLook`); None of results, and of files that an earlier version took.
    """

    id: str
    filename: str
    num_bytes: int
    digest: str
    num_examples: int
    num_duplicates: int
    created_at: int
    purpose: Purpose = Purpose.TUNING
    look: Mapping[str, Any] | None = None

    @property
    def status_details(self) -> str:
        """Of an upload of an earlier version no more than its counts."""
        if self.look is not None:
            return str(self.look["status"])
        return f"{self.num_examples} examples, {self.num_duplicates} of them duplicates"


class UploadStore:
    """Uploads by id. Equal contents are stored once."""

    def __init__(self, database: Database, folder: StateFolder) -> None:
        self._database = database
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, filename: str, content: bytes, purpose: Purpose = Purpose.TUNING) -> TrainingFile:
        """Check a file and keep it. One that is refused changes nothing.

        Reading a large file takes several times its size in memory: add one at a time.

        Args: purpose: TUNING or INPUTS.

        Raises InvalidInput: with the file's name and the line at fault, or because there is no room.
        """
        if not (0 < len(filename) <= MAX_FILENAME_CHARS and filename.isprintable()):
            raise InvalidInput(f"filename must be 1 to {MAX_FILENAME_CHARS} printable characters", param="file")
        if len(content) > MAX_FILE_BYTES:
            raise InvalidInput(f"{filename}: the file is larger than {MAX_FILE_BYTES} bytes", param="file")
        found = _read(content, filename, purpose)
        with self._lock:
            counts = {"num_examples": found.num_examples, "num_duplicates": found.num_duplicates}
            look = found.as_dict() | {"status": found.status}
            return self._keep(content, filename=filename, purpose=purpose, look=look, **counts)

    def add_results(self, filename: str, content: bytes) -> TrainingFile:
        """Keep a job's figures, CSV with a header, once: a job that ends again after a crash finds its file.

        Raises InvalidInput: there is no room.
        """
        query = select(files).where(files.c.filename == filename, files.c.purpose == Purpose.RESULTS)
        with self._lock:
            for file in self._database.read(query, _make_file):
                return file
            counts = {"num_examples": content.count(b"\n") - 1, "num_duplicates": 0}
            return self._keep(content, filename=filename, purpose=Purpose.RESULTS, **counts)

    def _keep(self, content: bytes, **described: Any) -> TrainingFile:
        """Raises InvalidInput: there is no room."""
        self._require_room(len(content))
        digest, now = self._folder.put_file(content), int(time.time())
        file = TrainingFile(id=new_id("file"), num_bytes=len(content), digest=digest, created_at=now, **described)
        with self._database.writing() as connection:
            connection.execute(insert(files).values(vars(file)))
        return file

    def get(self, file_id: str, *, param: str = "file_id") -> TrainingFile:
        """Raises NoSuchFile."""
        return _make_file(self._find(file_id, param))

    def page(
        self, after: str | None, limit: int, *, is_ascending: bool = False, purpose: Purpose | None = None
    ) -> tuple[list[TrainingFile], bool]:
        """Files by the time of their upload, after the one with id `after`, and whether there are more."""
        seq = None if after is None else self._find(after, "after")["seq"]
        query = select(files) if purpose is None else select(files).where(files.c.purpose == purpose)
        return self._database.read_page(query, _make_file, files.c.seq, seq, limit, is_ascending=is_ascending)

    def read(self, file: TrainingFile) -> bytes:
        """Raises CorruptState."""
        return self._folder.read_file(file.digest)

    def load(
        self, file_id: str, *, param: str, input_field: str | None = None, target_field: str | None = None
    ) -> Dataset:
        """The examples of an upload.

        Args: input_field, target_field: names of its fields; None finds them.

        Raises NoSuchFile and InvalidInput with `param`, InvalidInput about a field, CorruptState.
        """
        file = self.get(file_id, param=param)
        if file.purpose is not Purpose.TUNING:
            raise InvalidInput(f"{file.filename} is for {file.purpose} and has no examples to learn from", param=param)
        content = self.read(file)
        return read_dataset(content, name=file.filename, input_field=input_field, target_field=target_field)

    def load_inputs(self, file_id: str, *, param: str, input_field: str | None = None) -> Dataset:
        """The inputs of an upload, answers left out. Raises as `load` does."""
        file = self.get(file_id, param=param)
        if file.purpose is Purpose.RESULTS:
            raise InvalidInput(f"{file.filename} holds the figures of a job and no inputs", param=param)
        return read_unlabeled(self.read(file), name=file.filename, input_field=input_field)

    def delete(self, file_id: str, used_ids: Iterable[str]) -> None:
        """Args: used_ids: of files that unfinished jobs need.

        Raises NoSuchFile. InvalidInput: it is one of those.
        """
        with self._lock:
            file = self.get(file_id)
            if file_id in set(used_ids):
                raise InvalidInput("a job that has not ended needs this file; cancel it first", param="file_id")
            with self._database.writing() as connection:
                connection.execute(delete(files).where(files.c.id == file_id))
            if file.digest not in self.digests():
                self._folder.remove_file(file.digest)

    def digests(self) -> set[str]:
        """Of every content that an upload names."""
        return set(self._database.read(select(files.c.digest), lambda row: row["digest"]))

    def _find(self, file_id: str, param: str) -> RowMapping:
        return self._database.find(files, file_id, NoSuchFile("there is no such file", param=param))

    def _require_room(self, num_bytes: int) -> None:
        with self._database.reading() as connection:
            query = select(func.count(), func.coalesce(func.sum(files.c.num_bytes), 0)).select_from(files)
            num_files, num_used_bytes = connection.execute(query).one()
        if num_files >= MAX_FILES or num_used_bytes + num_bytes > MAX_ALL_FILES_BYTES:
            raise InvalidInput(
                f"the server keeps {MAX_FILES} files of {MAX_ALL_FILES_BYTES} bytes together; delete some", param="file"
            )


def _read(content: bytes, filename: str, purpose: Purpose) -> FileLook:
    """Raises InvalidInput, with file and line."""
    return FileLook.of(read_upload(content, name=filename, has_targets=purpose is Purpose.TUNING))


def _make_file(row: RowMapping) -> TrainingFile:
    return make_record(TrainingFile, row, purpose=Purpose(row["purpose"]))
