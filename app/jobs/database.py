"""Database: the tables of files, jobs, events and checkpoints, in SQLite.

WAL with synchronous=FULL: whatever a transaction has written when it returns survives a crash.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from app.errors import SoftswapError, TuningUnavailable

SCHEMA_VERSION = 2
"""As `PRAGMA user_version` has it; 1 was never released."""
BUSY_TIMEOUT_S = 30
Record = TypeVar("Record")

metadata = sa.MetaData()

files = sa.Table(
    "files",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("num_bytes", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("num_examples", sa.Integer, nullable=False),
    sa.Column("num_duplicates", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("look", sa.JSON(none_as_null=True)),
    sqlite_autoincrement=True,
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False, index=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("finished_at", sa.Integer),
    sa.Column("num_runs", sa.Integer, nullable=False, default=0),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("num_steps", sa.Integer),
    sa.Column("estimated_finish", sa.Integer),
    sa.Column("version", sa.Text),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("trained_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("result_file", sa.Text),
    sqlite_autoincrement=True,
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON(none_as_null=True)),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("step", sa.Integer),
    sa.Column("member", sa.Integer, nullable=False),
    # NULLs differ from one another, so there may be any number of events that belong to no step.
    sa.UniqueConstraint("job_id", "kind", "step", "member"),
    sqlite_with_rowid=False,
)
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("train_loss", sa.Float),
    sa.Column("created_at", sa.Integer, nullable=False),
    sa.UniqueConstraint("job_id", "step"),
    sa.Index("checkpoints_by_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)


class Database:
    """Transactions from any thread. Writers take turns; readers see the last committed state and never wait."""

    def __init__(self, path: Path) -> None:
        """Raises TuningUnavailable: the file is damaged, or of another version of softswap."""
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        )
        sa.event.listen(self._engine, "connect", _set_up)
        sa.event.listen(self._engine, "begin", _begin)
        try:
            self._prepare()
        except DatabaseError as error:
            raise TuningUnavailable(
                f"this server cannot tune: {path.name} in its state folder cannot be read ({error.orig}); "
                "move the folder away to start afresh"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction: all of it is on disk when this ends without an exception, none of it otherwise."""
        with self._engine.connect().execution_options(is_writing=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One snapshot."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def read(self, query: sa.Select[Any], make: Callable[[sa.RowMapping], Record]) -> list[Record]:
        """What `make` makes of each row."""
        with self.reading() as connection:
            return [make(row) for row in connection.execute(query).mappings()]

    def read_page(
        self,
        query: sa.Select[Any],
        make: Callable[[sa.RowMapping], Record],
        place: sa.Column[Any],
        after: int | None,
        limit: int,
        *,
        is_ascending: bool = False,
        is_wanted: Callable[[Record], bool] | None = None,
    ) -> tuple[list[Record], bool]:
        """As `read`, at most `limit` in the order of `place` from `after` on, and whether there are more.

        Args: is_wanted: None wants all.
        """
        if after is not None:
            query = query.where(place > after if is_ascending else place < after)
        query = query.order_by(place if is_ascending else place.desc())
        if is_wanted is None:
            found = self.read(query.limit(limit + 1), make)
        else:
            found = [each for each in self.read(query, make) if is_wanted(each)]
        return found[:limit], len(found) > limit

    def find(self, table: sa.Table, row_id: str, error: SoftswapError) -> sa.RowMapping:
        """Raises `error`: there is no row with this id."""
        with self.reading() as connection:
            return find_row(connection, table, row_id, error)

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        with self.writing() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, SCHEMA_VERSION):
                age = "a newer" if version > SCHEMA_VERSION else "an unreleased"
                raise TuningUnavailable(f"this server cannot tune: {age} softswap wrote its state folder")
            if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
                raise TuningUnavailable("this server cannot tune: the database in its state folder is damaged")
            metadata.create_all(connection)
            _add_columns(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _add_columns(connection: sa.Connection) -> None:
    """Columns that an earlier version of softswap did not have; their rows say nothing there."""
    for table in metadata.sorted_tables:
        present = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
        for column in table.columns:
            if column.name not in present:
                kind = column.type.compile(connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")


def read_rows_apart(path: Path, *columns: sa.Column[Any]) -> list[dict[str, Any]]:
    """Of one table in a database that another process may have open; nothing is written.

    Raises TuningUnavailable: it cannot be read.
    """
    url = f"{path.absolute().as_uri()}?mode=ro"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(url, timeout=BUSY_TIMEOUT_S, uri=True))
    try:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(*columns)).mappings()]
    except DatabaseError as error:
        raise TuningUnavailable(f"the jobs in {path} cannot be read ({error.orig})") from error
    finally:
        engine.dispose()


def find_row(connection: sa.Connection, table: sa.Table, row_id: str, error: SoftswapError) -> sa.RowMapping:
    """Raises `error`: there is no row with this id."""
    row = connection.execute(sa.select(table).where(table.c.id == row_id)).mappings().first()
    if row is None:
        raise error
    return row


def make_record(kind: type[Record], row: sa.RowMapping, **changed: Any) -> Record:
    """A dataclass with the row's values of the same names, or those that are `changed`."""
    return kind(**{name: row[name] for name in kind.__annotations__} | changed)


def _set_up(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: sa.Connection) -> None:
    """A writer takes its turn at once: one that began as a reader could be refused in the middle."""
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
