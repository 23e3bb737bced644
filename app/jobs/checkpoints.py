"""CheckpointStore: what a job has published before its end."""

from __future__ import annotations

import time

from sqlalchemy import Connection, RowMapping, delete, insert, select

from app.jobs.database import Database, checkpoints
from app.jobs.job import Checkpoint, new_id
from app.jobs.work import Candidate


class CheckpointStore:
    """Each step of a job has at most one checkpoint, which never changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job_id: str, candidate: Candidate, version: str) -> None:
        """Nothing changes if the step has its checkpoint already."""
        row = {
            "id": new_id("ftckpt"),
            "job_id": job_id,
            "step": candidate.step,
            "version": version,
            "metric": candidate.metric,
            "value": candidate.value,
            "train_loss": candidate.train_loss,
            "created_at": int(time.time()),
        }
        with self._database.writing() as connection:
            connection.execute(insert(checkpoints).prefix_with("OR IGNORE").values(row))

    def of(self, job_id: str) -> list[Checkpoint]:
        """By step, ascending."""
        query = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step)
        with self._database.reading() as connection:
            return [_checkpoint(row) for row in connection.execute(query).mappings()]


def drop_checkpoints(connection: Connection, job_id: str) -> None:
    connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id))


def _checkpoint(row: RowMapping) -> Checkpoint:
    return Checkpoint(**{name: value for name, value in row.items() if name != "seq"})
