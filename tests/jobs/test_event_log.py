"""Events keep their numbers, whatever a resumed run records again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import NoSuchJob
from app.jobs.database import Database
from app.jobs.event_log import NOTE, EventLog, NewEvent

JOB = "ftjob-" + "0" * 24


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "jobs.sqlite3")
    yield database
    database.close()


@pytest.fixture
def log(database: Database) -> EventLog:
    return EventLog(database)


def record(database: Database, log: EventLog, run: int, *events: NewEvent) -> None:
    with database.writing() as connection:
        log.record(connection, JOB, run, events)


def step(number: int, words: str = "first") -> NewEvent:
    return NewEvent("step", f"{words} {number}", step=number, data={"step": number})


def test_what_is_recorded_again_keeps_its_number_and_gets_new_content(database: Database, log: EventLog) -> None:
    record(database, log, 1, NewEvent(NOTE, "started"), step(1), step(2), step(3))
    record(database, log, 2, NewEvent(NOTE, "resumed"), step(2, "second"), step(3, "second"), step(4, "second"))
    events = log.since(JOB, None, 100)
    assert [event.message for event in events] == [
        "started",
        "first 1",
        "second 2",
        "second 3",
        "resumed",
        "second 4",
    ]
    assert [event.number for event in events] == sorted({event.number for event in events})


def test_notes_are_never_replaced_and_members_are_told_apart(database: Database, log: EventLog) -> None:
    record(database, log, 1, NewEvent(NOTE, "a"), NewEvent(NOTE, "a"))
    record(database, log, 1, *(NewEvent("evaluated", "e", step=1, member=member) for member in (0, 1, 0)))
    assert len(log.since(JOB, None, 100)) == 4


def test_what_a_redone_update_did_not_record_again_goes(database: Database, log: EventLog) -> None:
    record(database, log, 1, step(1), step(2), NewEvent("dropped", "gone", step=2), step(3))
    record(database, log, 2, step(2, "second"))
    with database.writing() as connection:
        log.drop_stale(connection, JOB, 2, range(2, 3))
    assert [event.message for event in log.since(JOB, None, 100)] == ["first 1", "second 2", "first 3"]
    with database.writing() as connection:
        log.drop_stale(connection, JOB, 1, range(1, 4))
        log.drop_stale(connection, JOB, 2, range(0))
    assert len(log.since(JOB, None, 100)) == 3


def test_pages_go_back_from_the_newest_and_streams_continue_after_the_last(database: Database, log: EventLog) -> None:
    record(database, log, 1, *map(step, range(1, 8)))
    events = log.since(JOB, None, 100)
    page, has_more = log.page(JOB, None, 3)
    assert (page, has_more) == (events[:3:-1], True)
    page, has_more = log.page(JOB, page[-1].id, 10)
    assert (page, has_more) == (events[3::-1], False)
    assert log.since(JOB, events[4].id, 1) == [events[5]]
    assert log.since("ftjob-" + "1" * 24, None, 10) == []


@pytest.mark.parametrize(
    "event_id", ["", "x", f"ftevent-{'1' * 24}-1", f"ftevent-{'0' * 24}-0", f"ftevent-{'0' * 24}-"]
)
def test_ids_of_other_things_are_refused(log: EventLog, event_id: str) -> None:
    with pytest.raises(NoSuchJob):
        log.page(JOB, event_id, 1)
