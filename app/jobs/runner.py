"""JobRunner: works through the queue, one job at a time, on a thread of its own."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from sqlalchemy.exc import OperationalError

from app.engine.threads.device_lease import Lease
from app.errors import Draining, EngineDead, RegistryUnavailable, SoftswapError, TuningUnavailable
from app.jobs.attempt import Attempt
from app.jobs.job import Job, JobError
from app.jobs.job_store import JobStores
from app.jobs.work import JobKind

DISK_FAULTS: Final = (OSError, OperationalError, sqlite3.OperationalError, RegistryUnavailable, TuningUnavailable)
"""They say nothing against a job, and may pass: a full disk is cleared, a folder is mounted again."""
STOP_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 60.0
logger = logging.getLogger(__name__)


class JobRunner:
    """`start` once; `wake` whenever a job may be waiting; `stop`, and `close` to wait for it.

    Args:
        lease, save_every_s: see Attempt.
        retry_s: seconds until a job that the disk failed is tried again for the first time.
    """

    def __init__(
        self, stores: JobStores, kind: JobKind, lease: Lease, *, save_every_s: float, retry_s: float = RETRY_S
    ) -> None:
        self._stores = stores
        self._kind = kind
        self._lease = lease
        self._save_every_s = save_every_s
        self._retry_s = retry_s
        self._retries = Retries(first_s=retry_s)
        self._job_id_to_plan: dict[str, Any] = {}
        self._told: set[str] = set()
        self._news = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuning", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def has_retries(self) -> bool:
        """Whether a job waits to be tried again."""
        return self._retries.next_s is not None

    def start(self) -> None:
        self._thread.start()

    def add(self, job: Job, plan: Any) -> None:
        """A job was created. Its plan spares reading the files again, unless another job is created before its turn."""
        self._job_id_to_plan = {job.id: plan}
        self.wake()

    def wake(self) -> None:
        self._news.set()

    def stop(self) -> None:
        """Save the present job at its next update and queue it again. Does not wait."""
        self._is_stopping.set()
        self._news.set()

    def close(self) -> None:
        """`stop`, and wait until it is done. A job too slow for that continues from what was saved of it before."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._news.clear()
            try:
                has_worked = self._take_turn()
            except Exception:
                logger.exception("the job database could not be written; trying again")
                self._is_stopping.wait(self._retry_s)
            else:
                if not has_worked:
                    self._news.wait(self._retries.next_s)

    def _take_turn(self) -> bool:
        """Work on the next job, if there is one. Nothing else runs, so what seems to run does not."""
        self._stores.jobs.recover()
        self._forget_others()
        job = self._stores.jobs.claim({*self._retries.waiting, *self._not_for_this_server()})
        if job is None:
            return False
        self._work_on(job)
        return True

    def _not_for_this_server(self) -> set[str]:
        """Ids of queued jobs that another server must take, each of which is told so once."""
        job_id_to_reason = {
            job.id: reason for job in self._stores.jobs.queued() if (reason := self._kind.reason_to_wait(job.spec))
        }
        for job_id in job_id_to_reason.keys() - self._told:
            self._stores.jobs.warn(job_id, f"Job stays queued: {job_id_to_reason[job_id]}")
        self._told |= job_id_to_reason.keys()
        return set(job_id_to_reason)

    def _work_on(self, job: Job) -> None:
        try:
            self._attempt(job).run()
        except (Draining, EngineDead):
            self._is_stopping.set()
            self._stores.jobs.put_back(job.id, "Job queued again: the server is stopping")
        except DISK_FAULTS as error:
            self._put_off(job, error)
        except SoftswapError as error:
            self._fail(job, JobError(error.code, error.message, error.param))
        except Exception:
            logger.exception("job %s failed", job.id)
            self._fail(job, JobError("internal_error", "the server had an error; its log has it under the job's id"))

    def _attempt(self, job: Job) -> Attempt:
        return Attempt(
            self._stores,
            self._kind,
            job,
            self._job_id_to_plan.pop(job.id, None) or self._kind.plan(job.spec),
            lease=self._lease,
            save_every_s=self._save_every_s,
            should_stop=self._is_stopping.is_set,
        )

    def _put_off(self, job: Job, error: Exception) -> None:
        """To continue later from what was saved. Until then the next job has its turn."""
        logger.warning("job %s could not continue: %s", job.id, error)
        wait_s = self._retries.put_off(job.id)
        message = f"Job queued again: {_explain(error)}; it is tried again in {wait_s:g} seconds"
        self._stores.jobs.put_back(job.id, message, level="warn")

    def _forget_others(self) -> None:
        """Forget jobs that no longer wait. One that was cancelled leaves nothing to continue from."""
        queued = {job.id for job in self._stores.jobs.queued()}
        if queued.isdisjoint(self._job_id_to_plan):
            self._job_id_to_plan = {}
        for job_id in self._retries.keep_only(queued):
            if self._stores.jobs.is_over(job_id):
                self._stores.folder.remove_run(job_id)

    def _fail(self, job: Job, error: JobError) -> None:
        self._stores.jobs.fail(job.id, error)
        self._stores.folder.remove_run(job.id)


class _Wait(NamedTuple):
    duration_s: float
    ends_s: float


class Retries:
    """Kept in memory only: a server that starts tries every job at once.

    Args:
        clock: monotonic seconds.
        first_s: how long a job waits the first time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, first_s: float = RETRY_S) -> None:
        self._clock = clock
        self._first_s = first_s
        self._job_id_to_wait: dict[str, _Wait] = {}

    def put_off(self, job_id: str) -> float:
        """Returns the seconds it waits: twice as long each time, up to MAX_RETRY_S."""
        last = self._job_id_to_wait.get(job_id)
        duration_s = self._first_s if last is None else min(2 * last.duration_s, MAX_RETRY_S)
        self._job_id_to_wait[job_id] = _Wait(duration_s, self._clock() + duration_s)
        return duration_s

    @property
    def waiting(self) -> set[str]:
        """Ids of those that must not be tried yet."""
        now_s = self._clock()
        return {job_id for job_id, wait in self._job_id_to_wait.items() if wait.ends_s > now_s}

    @property
    def next_s(self) -> float | None:
        """Seconds until one may be tried; None if none is waiting."""
        ends_s = min((wait.ends_s for wait in self._job_id_to_wait.values()), default=None)
        return None if ends_s is None else max(0.0, ends_s - self._clock())

    def keep_only(self, job_ids: Collection[str]) -> set[str]:
        """Forget all others, whose ids are returned."""
        others = self._job_id_to_wait.keys() - job_ids
        for job_id in others:
            del self._job_id_to_wait[job_id]
        return others


def _explain(error: Exception) -> str:
    """In words that name no path."""
    if isinstance(error, RegistryUnavailable | TuningUnavailable):
        return error.message
    if isinstance(error, OSError):
        return f"the server's disk failed ({error.strerror or type(error).__name__})"
    return "the server's job database could not be written"
