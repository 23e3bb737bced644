"""CheckpointStore: what a job has published before its end."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy import insert, select

from app.errors import NoSuchJob
from app.jobs.database import Database, checkpoints, make_record
from app.jobs.job import Checkpoint, new_id
from app.jobs.work import Candidate


class CheckpointStore:
    """Each step of a job has at most one checkpoint, which never changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job_id: str, candidate: Candidate, version: str) -> None:
        """Nothing changes if the step has its checkpoint already."""
        figures = {name: getattr(candidate, name) for name in ("step", "metric", "value", "train_loss")}
        row = {"id": new_id("ftckpt"), "job_id": job_id, "version": version, "created_at": int(time.time()), **figures}
        with self._database.writing() as connection:
            connection.execute(insert(checkpoints).prefix_with("OR IGNORE").values(row))

    def of(self, job_id: str) -> list[Checkpoint]:
        """By step, ascending."""
        query = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step)
        return self._database.read(query, _make_checkpoint)

    def page(self, job_id: str, after: str | None, limit: int) -> tuple[list[Checkpoint], bool]:
        """Newest first, after the one with id `after`, and whether there are more. Raises NoSuchJob: none has it."""
        step = next((each.step for each in self.of(job_id) if each.id == after), None)
        if step is None and after is not None:
            raise NoSuchJob("the job has no checkpoint with this id", param="after")
        query = select(checkpoints).where(checkpoints.c.job_id == job_id)
        return self._database.read_page(query, _make_checkpoint, checkpoints.c.step, step, limit)


_make_checkpoint = partial(make_record, Checkpoint)
