from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from app.errors import TuningUnavailable
from app.jobs.database import SCHEMA_VERSION, Database, files

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


def test_commits_wait_for_the_disk_and_readers_wait_for_nothing(tmp_path: Path) -> None:
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


def test_a_newer_programs_tables_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(TuningUnavailable, match="newer softswap"):
        Database(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
