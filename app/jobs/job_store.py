"""JobStore: every job and its status, which clients see and the runner obeys; JobStores: all that is kept of jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from app.errors import InvalidInput, NoSuchJob, Overloaded
from app.jobs.database import Database, checkpoints, events, find_row, jobs, make_record
from app.jobs.event_log import NOTE, EventLog, NewEvent
from app.jobs.files import UploadStore
from app.jobs.job import UNFINISHED, Checkpoint, Job, JobError, JobStatus, Order, new_id
from app.jobs.notifier import Notifier
from app.jobs.state_folder import StateFolder
from app.jobs.work import Candidate
from app.telemetry import Metrics

MAX_UNFINISHED_JOBS = 32
MAX_JOBS = 10_000
RETRY_AFTER_S = 60.0


class JobStore:
    """Changes of status are made one at a time, each in one transaction with the event that reports it."""

    def __init__(self, database: Database, log: EventLog, notifier: Notifier, metrics: Metrics) -> None:
        self._database = database
        self._log = log
        self._notifier = notifier
        self._metrics = metrics
        self._deciding = threading.RLock()
        self._running_id: str | None = None

    def create(self, spec: Mapping[str, Any], message: str) -> Job:
        """Queue a job. Raises Overloaded: too many wait. InvalidInput: too many are kept."""
        job_id = new_id("ftjob")
        row = {"id": job_id, "status": JobStatus.QUEUED, "spec": dict(spec), "created_at": int(time.time())}
        with self._changing(job_id) as connection:
            _require_room(connection)
            connection.execute(insert(jobs).values(row))
            self._note(connection, job_id, 0, message)
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises NoSuchJob."""
        with self._database.reading() as connection:
            return _find(connection, job_id)

    def page(
        self, after: str | None, limit: int, is_wanted: Callable[[Job], bool] | None = None
    ) -> tuple[list[Job], bool]:
        """Jobs newest first, after the one with id `after`, and whether there are more.

        Args: is_wanted: None wants all.
        """
        unknown = NoSuchJob("there is no fine-tuning job with this id", param="after")
        seq = None if after is None else self._database.find(jobs, after, unknown)["seq"]
        return self._database.read_page(select(jobs), _make_job, jobs.c.seq, seq, limit, is_wanted=is_wanted)

    def give(self, job_id: str, order: Order) -> Job:
        """Cancel, pause or resume; a runner obeys at its next update. Raises NoSuchJob, InvalidInput."""
        with self._changing(job_id) as connection:
            job = _find(connection, job_id)
            status = order.apply(job.status)
            if status is not job.status:
                self._set_status(connection, job, status, f"Job {_PAST[order]}")
        if status is not job.status:
            self._count_end(status)
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget an ended job with its events and checkpoints; what it published stays.

        Raises NoSuchJob. InvalidInput: it has not ended.
        """
        with self._changing(job_id) as connection:
            if not _find(connection, job_id).status.is_final:
                raise InvalidInput("the job has not ended; cancel it first", param="fine_tuning_job_id")
            for column in (jobs.c.id, events.c.job_id, checkpoints.c.job_id):
                connection.execute(delete(column.table).where(column == job_id))

    def unfinished(self) -> list[Job]:
        """Oldest first."""
        return self._database.read(select(jobs).where(jobs.c.status.in_(UNFINISHED)).order_by(jobs.c.seq), _make_job)

    # From here on: what the runner calls.

    def recover(self) -> None:
        """Queue again whatever is marked as running although nothing runs it."""
        self._observe()
        for job in self.unfinished():
            if job.status is JobStatus.RUNNING:
                self.put_back(job.id, "Job queued again: the server was interrupted")

    def queued(self) -> list[Job]:
        """Oldest first."""
        return [job for job in self.unfinished() if job.status is JobStatus.QUEUED]

    def claim(self, waiting: Collection[str] = ()) -> Job | None:
        """The oldest queued job, which is running from now on. Args: waiting: ids of jobs to skip."""
        queued = next((job for job in self.queued() if job.id not in waiting), None)
        if queued is None:
            return None
        with self._changing(queued.id) as connection:
            job = _find(connection, queued.id)
            if job.status is not JobStatus.QUEUED:
                return None
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(num_runs=job.num_runs + 1))
            self._set_status(connection, job, JobStatus.RUNNING, "Job resumed" if job.num_runs else "Job started")
            self._running_id = job.id
        return self.get(queued.id)

    def is_running(self, job_id: str) -> bool:
        """Whether its runner may continue. Cheap enough to ask after every slice."""
        return self._running_id == job_id

    def is_over(self, job_id: str) -> bool:
        """Whether it has ended, or was even deleted."""
        query = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.status.in_(UNFINISHED))
        return not self._database.read(query, lambda row: row["id"])

    @contextmanager
    def deciding(self, job_id: str) -> Iterator[bool]:
        """Whether the job still runs, and no order can change that until the end of this."""
        with self._deciding:
            yield self.is_running(job_id)

    def put_back(self, job_id: str, message: str, *, level: str = "info") -> None:
        """Queue a running job again."""
        self._leave(job_id, JobStatus.QUEUED, message, level=level)

    def fail(self, job_id: str, error: JobError) -> None:
        self._leave(job_id, JobStatus.FAILED, f"Job failed: {error.message}", level="error", error=asdict(error))

    def succeed(self, job_id: str, version: str, *, note: str = "", result_file: str | None = None) -> None:
        """Args: note: what the last event says after the version's name."""
        message = f"The job has successfully completed: {version}{note}"
        self._leave(job_id, JobStatus.SUCCEEDED, message, version=version, result_file=result_file)

    def warn(self, job_id: str, message: str) -> None:
        """Record an event of level `warn`."""
        with self._changing(job_id) as connection:
            self._note(connection, job_id, _find(connection, job_id).num_runs, message, "warn")

    def record(self, job: Job, new_events: Sequence[NewEvent], *, redone: range, **progress: int | None) -> None:
        """Events, and how far the run has come, as fields of Job. Nothing of an ended job changes.

        Args: redone: see EventLog.drop_stale.
        """
        is_open = (jobs.c.id == job.id) & jobs.c.status.in_(UNFINISHED)
        with self._database.writing() as connection:
            if connection.execute(update(jobs).where(is_open).values(progress)).rowcount:
                self._log.record(connection, job.id, job.num_runs, new_events)
                self._log.drop_stale(connection, job.id, job.num_runs, redone)
        self._notifier.notify(job.id)

    def count_update(self, *, num_tokens: int) -> None:
        """One more update, for the metrics; one that is repeated after a crash counts again."""
        self._metrics.tuning_updates.inc()
        self._metrics.tuning_tokens.inc(num_tokens)

    @contextmanager
    def _changing(self, job_id: str) -> Iterator[Connection]:
        with self._deciding:
            with self._database.writing() as connection:
                yield connection
            self._observe()
            self._notifier.notify(job_id)

    def _observe(self) -> None:
        with self._database.reading() as connection:
            self._metrics.observe_jobs(_count_unfinished(connection))

    def _leave(self, job_id: str, status: JobStatus, message: str, *, level: str = "info", **values: Any) -> None:
        """Change a running job; one that was paused, cancelled or deleted meanwhile stays so."""
        with self._deciding:
            if self.is_over(job_id):
                return
            with self._changing(job_id) as connection:
                job = _find(connection, job_id)
                is_left = job.status is JobStatus.RUNNING
                if is_left:
                    self._set_status(connection, job, status, message, level=level, **values)
            if is_left:
                self._count_end(status)

    def _count_end(self, status: JobStatus) -> None:
        """Called once the change is durable: a write that failed and is tried again counts once."""
        if status.is_final:
            self._metrics.jobs_ended.labels(status).inc()

    def _set_status(
        self, connection: Connection, job: Job, status: JobStatus, message: str, *, level: str = "info", **values: Any
    ) -> None:
        if status is not JobStatus.RUNNING and self._running_id == job.id:
            self._running_id = None
        if status is not JobStatus.RUNNING:
            values["estimated_finish"] = None
        if status.is_final:
            values["finished_at"] = int(time.time())
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(status=status, **values))
        self._note(connection, job.id, job.num_runs, message, level)

    def _note(self, connection: Connection, job_id: str, run: int, message: str, level: str = "info") -> None:
        self._log.record(connection, job_id, run, [NewEvent(NOTE, message, level)])


_PAST = {Order.CANCEL: "cancelled", Order.PAUSE: "paused", Order.RESUME: "queued again"}


def _count_unfinished(connection: Connection) -> dict[str, int]:
    """Jobs of each status that is not final."""
    query = select(jobs.c.status, func.count()).where(jobs.c.status.in_(UNFINISHED)).group_by(jobs.c.status)
    found = dict(connection.execute(query).tuples().all())
    return {status: found.get(status, 0) for status in UNFINISHED}


def _require_room(connection: Connection) -> None:
    if connection.execute(select(func.count()).select_from(jobs)).scalar_one() >= MAX_JOBS:
        raise InvalidInput(f"the server keeps {MAX_JOBS} jobs; delete some that have ended")
    if sum(_count_unfinished(connection).values()) >= MAX_UNFINISHED_JOBS:
        raise Overloaded(f"{MAX_UNFINISHED_JOBS} jobs have not ended yet", retry_after_s=RETRY_AFTER_S)


def _find(connection: Connection, job_id: str) -> Job:
    unknown = NoSuchJob("there is no such fine-tuning job", param="fine_tuning_job_id")
    return _make_job(find_row(connection, jobs, job_id, unknown))


def _make_job(row: RowMapping) -> Job:
    error = None if row["error"] is None else JobError(**row["error"])
    return make_record(Job, row, status=JobStatus(row["status"]), error=error)


class CheckpointStore:
    """Each step of a job has at most one checkpoint, which never changes while it is there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job_id: str, candidate: Candidate, version: str) -> None:
        """Nothing changes if the step has its checkpoint already."""
        figures = {name: getattr(candidate, name) for name in ("step", "metric", "value", "train_loss")}
        row = {"id": new_id("ftckpt"), "job_id": job_id, "version": version, "created_at": int(time.time()), **figures}
        with self._database.writing() as connection:
            connection.execute(insert(checkpoints).prefix_with("OR IGNORE").values(row))

    def remove(self, checkpoint_id: str) -> None:
        """Nothing happens if it is gone already."""
        with self._database.writing() as connection:
            connection.execute(delete(checkpoints).where(checkpoints.c.id == checkpoint_id))

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


class JobStores:
    """Opening them queues jobs again that a crash or a stop interrupted."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Raises TuningUnavailable: another server has the folder, or it cannot be used."""
        self.folder = StateFolder(path)
        try:
            self.database = Database(self.folder.database_path)
        except BaseException:
            self.folder.close()
            raise
        self.notifier, self.events = Notifier(), EventLog(self.database)
        self.jobs = JobStore(self.database, self.events, self.notifier, metrics)
        self.checkpoints = CheckpointStore(self.database)
        self.files = UploadStore(self.database, self.folder)
        self.jobs.recover()
        unfinished = {job.id for job in self.jobs.unfinished()}
        self.folder.keep_only(digests=self.files.digests(), job_ids=unfinished)

    def close(self) -> None:
        self.database.close()
        self.folder.close()
