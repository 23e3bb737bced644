from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from app.errors import TuningUnavailable
from app.jobs.database import SCHEMA_VERSION, Database, files, jobs

ROW = {
    "id": "file-1",
    "filename": "a",
    "num_bytes": 1,
    "digest": "d",
    "num_examples": 1,
    "num_duplicates": 0,
    "created_at": 0,
    "purpose": "fine-tune",
}


def test_commits_wait_for_the_disk_and_readers_for_nobody(tmp_path: Path) -> None:
    database = Database(tmp_path / "jobs.sqlite3")
    with database.writing() as writer:
        assert writer.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert writer.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        writer.execute(insert(files).values(ROW))
        with database.reading() as reader:
            assert reader.execute(select(files)).all() == []
    with database.reading() as reader:
        assert len(reader.execute(select(files)).all()) == 1
    database.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "jobs.sqlite3")
    with pytest.raises(IntegrityError), database.writing() as writer:
        writer.execute(insert(files), [ROW, ROW])
    with database.reading() as reader:
        assert reader.execute(select(files)).all() == []
    database.close()


def test_a_newer_programs_books_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(TuningUnavailable, match="newer softswap"):
        Database(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_the_books_of_an_earlier_program_are_brought_up_to_date(tmp_path: Path) -> None:
    """As version 1 made them, with a file and a job in them."""
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(
            "CREATE TABLE files (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
            " filename TEXT NOT NULL,"
            " num_bytes INTEGER NOT NULL, digest TEXT NOT NULL, num_examples INTEGER NOT NULL,"
            " num_duplicates INTEGER NOT NULL, created_at INTEGER NOT NULL)"
        )
        other.execute(
            "CREATE TABLE jobs (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,"
            " spec JSON NOT NULL, created_at INTEGER NOT NULL, finished_at INTEGER, num_runs INTEGER NOT NULL,"
            " step INTEGER NOT NULL, num_steps INTEGER, estimated_finish INTEGER, version TEXT, error JSON)"
        )
        other.execute("INSERT INTO files VALUES (1, 'file-1', 'a', 1, 'd', 1, 0, 0)")
        other.execute("INSERT INTO jobs VALUES (1, 'ftjob-1', 'paused', '{}', 0, NULL, 1, 3, 9, NULL, NULL, NULL)")
        other.execute("PRAGMA user_version = 1")
    for _ in range(2):
        database = Database(path)
        with database.reading() as reader:
            [file] = reader.execute(select(files)).mappings()
            [job] = reader.execute(select(jobs)).mappings()
        assert dict(file) == {**ROW, "seq": 1}
        assert (job["step"], job["trained_tokens"], job["result_file"]) == (3, 0, None)
        database.close()
