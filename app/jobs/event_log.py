"""EventLog: what happened to each job, in order, for clients that list it and for clients that follow it live."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from app.errors import NoSuchJob
from app.jobs.database import Database, events, make_record

NOTE = "note"
_EVENT_ID = re.compile(r"ftevent-([0-9a-f]{24})-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class NewEvent:
    """An event to record.

    Attributes:
        kind: with step and member the event's identity: a resumed run that reaches it again replaces it.
        step: updates done; None for an event that belongs to no step, and is never replaced.
        member: of what is trained side by side; 0 if it concerns all.
        data: figures in JSON's types, which make it an event of type metrics.
    """

    kind: str
    message: str
    level: str = "info"
    step: int | None = None
    member: int = 0
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class JobEvent:
    """A recorded event. `number` rises within the job and is never used again."""

    job_id: str
    number: int
    created_at: int
    level: str
    message: str
    data: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        return f"ftevent-{self.job_id.removeprefix('ftjob-')}-{self.number}"


class EventLog:
    """The table of events. Callers of `record` notify listeners once their transaction is done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, connection: Connection, job_id: str, run: int, new_events: Iterable[NewEvent]) -> None:
        """Add new events. One that an earlier run has recorded of the same step keeps its number and gets new content.

        Args: run: number of the attempt at the job, from 1.
        """
        last = select(func.coalesce(func.max(events.c.number), 0)).where(events.c.job_id == job_id)
        number = connection.execute(last).scalar_one()
        for number, event in enumerate(new_events, number + 1):  # noqa: B020
            content = {"run": run, "level": event.level, "message": event.message, "data": event.data}
            key = {"kind": event.kind, "step": event.step, "member": event.member}
            row = {"job_id": job_id, "number": number, "created_at": int(time.time()), **key, **content}
            same = [events.c.job_id, events.c.kind, events.c.step, events.c.member]
            connection.execute(insert(events).values(row).on_conflict_do_update(index_elements=same, set_=content))

    def drop_stale(self, connection: Connection, job_id: str, run: int, redone: range) -> None:
        """Drop what earlier runs recorded of updates that this run has repeated without recording it again.

        On one machine in float32 nothing is dropped; other devices may round differently.
        """
        if run > 1 and redone:
            is_redone = events.c.step.between(redone[0], redone[-1])
            connection.execute(delete(events).where(events.c.job_id == job_id, is_redone, events.c.run < run))

    def since(self, job_id: str, after: str | None, limit: int) -> list[JobEvent]:
        """The oldest events after the one with id `after`. Raises NoSuchJob: the job has no event with this id."""
        number = _number_of(job_id, after) if after else 0
        query = select(events).where(events.c.job_id == job_id)
        return self._database.read_page(query, _make_event, events.c.number, number, limit, is_ascending=True)[0]

    def page(self, job_id: str, after: str | None, limit: int) -> tuple[list[JobEvent], bool]:
        """The newest events before the one with id `after`, newest first, and whether there are more."""
        number = None if after is None else _number_of(job_id, after)
        query = select(events).where(events.c.job_id == job_id)
        return self._database.read_page(query, _make_event, events.c.number, number, limit)


_make_event = partial(make_record, JobEvent)


def _number_of(job_id: str, event_id: str) -> int:
    match = _EVENT_ID.fullmatch(event_id)
    if match is None or f"ftjob-{match[1]}" != job_id:
        raise NoSuchJob("the job has no event with this id", param="after")
    return int(match[2])
