"""Database: the tables of files, jobs, events and checkpoints, in SQLite.

WAL with synchronous=FULL: whatever a transaction has written when it returns survives a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    Select,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    select,
)
from sqlalchemy.exc import DatabaseError

from app.errors import SoftswapError, TuningUnavailable

SCHEMA_VERSION = 2
"""As `PRAGMA user_version` has it; 1 was never released."""
BUSY_TIMEOUT_S = 30
Record = TypeVar("Record")

metadata = MetaData()

files = Table(
    "files",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("filename", Text, nullable=False),
    Column("num_bytes", Integer, nullable=False),
    Column("digest", Text, nullable=False, index=True),
    Column("num_examples", Integer, nullable=False),
    Column("num_duplicates", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("purpose", Text, nullable=False),
    sqlite_autoincrement=True,
)
jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("status", Text, nullable=False, index=True),
    Column("spec", JSON, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("num_runs", Integer, nullable=False, default=0),
    Column("step", Integer, nullable=False, default=0),
    Column("num_steps", Integer),
    Column("estimated_finish", Integer),
    Column("version", Text),
    Column("error", JSON(none_as_null=True)),
    Column("trained_tokens", Integer, nullable=False, default=0),
    Column("result_file", Text),
    sqlite_autoincrement=True,
)
events = Table(
    "events",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created_at", Integer, nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
    Column("run", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("step", Integer),
    Column("member", Integer, nullable=False),
    # NULLs differ from one another, so there may be any number of events that belong to no step.
    UniqueConstraint("job_id", "kind", "step", "member"),
    sqlite_with_rowid=False,
)
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job_id", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("metric", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("train_loss", Float),
    Column("created_at", Integer, nullable=False),
    UniqueConstraint("job_id", "step"),
    Index("checkpoints_by_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)


class Database:
    """Transactions from any thread. Writers take turns; readers see the last committed state and never wait."""

    def __init__(self, path: Path) -> None:
        """Raises TuningUnavailable: the file is damaged, or of another version of softswap."""
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
        )
        event.listen(self._engine, "connect", _set_up)
        event.listen(self._engine, "begin", _begin)
        try:
            self._prepare()
        except DatabaseError as error:
            raise TuningUnavailable(
                f"this server cannot tune: {path.name} in its state folder cannot be read ({error.orig}); "
                "move the folder away to start afresh"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: all of it is on disk when this ends without an exception, none of it otherwise."""
        with self._engine.connect().execution_options(is_writing=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One snapshot."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def read(self, query: Select[Any], make: Callable[[RowMapping], Record]) -> list[Record]:
        """What `make` makes of each row."""
        with self.reading() as connection:
            return [make(row) for row in connection.execute(query).mappings()]

    def read_page(
        self,
        query: Select[Any],
        make: Callable[[RowMapping], Record],
        place: Column[Any],
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

    def find(self, table: Table, row_id: str, error: SoftswapError) -> RowMapping:
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
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def find_row(connection: Connection, table: Table, row_id: str, error: SoftswapError) -> RowMapping:
    """Raises `error`: there is no row with this id."""
    row = connection.execute(select(table).where(table.c.id == row_id)).mappings().first()
    if row is None:
        raise error
    return row


def make_record(kind: type[Record], row: RowMapping, **changed: Any) -> Record:
    """A dataclass with the row's values of the same names, or those that are `changed`."""
    return kind(**{name: row[name] for name in kind.__annotations__} | changed)


def _set_up(connection: Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    """A writer takes its turn at once: one that began as a reader could be refused in the middle."""
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
