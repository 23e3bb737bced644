"""JobRunner: works through the queue, one job at a time, on a thread of its own."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Final

from sqlalchemy.exc import OperationalError

from app.errors import Draining, EngineDead, RegistryUnavailable, SoftswapError, TuningUnavailable
from app.jobs.job import Job, JobError
from app.jobs.retries import RETRY_S, Retries
from app.tuning.job.attempt import Bench, Session

FAULTS_OF_THE_DISK: Final = (
    OSError,
    OperationalError,
    sqlite3.OperationalError,
    RegistryUnavailable,
    TuningUnavailable,
)
"""They say nothing against a job, and may pass: a full disk is cleared, a folder is mounted again."""
STOP_TIMEOUT_S: Final = 30.0
logger = logging.getLogger(__name__)


class JobRunner:
    """`start` once; `wake` whenever a job may be waiting; `stop`, and `close` to wait for it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._retries = Retries()
        self._news = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuning", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._news.set()

    def stop(self) -> None:
        """Save the present job at its next update and queue it again. Does not wait."""
        self._is_stopping.set()
        self._news.set()

    def close(self) -> None:
        """`stop`, and wait until it is done. A job too slow for that goes on from what was saved of it before."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._news.clear()
            try:
                has_worked = self._take_turn()
            except Exception:
                logger.exception("the books of the jobs could not be kept; trying again")
                self._is_stopping.wait(RETRY_S)
            else:
                if not has_worked:
                    self._news.wait(self._retries.next_s)

    def _take_turn(self) -> bool:
        """Work on the next job, if there is one. Nothing else runs, so what seems to run does not."""
        self._bench.jobs.recover()
        self._forget_retries()
        job = self._bench.jobs.claim(self._retries.waiting)
        if job is None:
            return False
        self._work_on(job)
        return True

    def _work_on(self, job: Job) -> None:
        try:
            Session(self._bench, job, self._is_stopping.is_set).work()
        except (Draining, EngineDead):
            self._is_stopping.set()
            self._bench.jobs.put_back(job.id, "Job queued again: the server is stopping")
        except FAULTS_OF_THE_DISK as error:
            self._put_off(job, error)
        except SoftswapError as error:
            self._fail(job, JobError.of(error))
        except Exception:
            logger.exception("job %s failed", job.id)
            self._fail(job, JobError("internal_error", "the server had an error; its log has it under the job's id"))

    def _put_off(self, job: Job, error: Exception) -> None:
        """To go on later from what was saved. Until then the next job has its turn."""
        logger.warning("job %s could not go on: %s", job.id, error)
        wait_s = self._retries.put_off(job.id)
        message = f"Job queued again: {_explain(error)}; it is tried again in {wait_s:g} seconds"
        self._bench.jobs.put_back(job.id, message, level="warn")

    def _forget_retries(self) -> None:
        """Of jobs that no longer wait. One that was cancelled meanwhile leaves nothing to go on from."""
        queued = {job.id for job in self._bench.jobs.queued()}
        for job_id in self._retries.keep_only(queued):
            if self._bench.jobs.is_over(job_id):
                self._bench.folder.remove_run(job_id)

    def _fail(self, job: Job, error: JobError) -> None:
        self._bench.jobs.fail(job.id, error)
        self._bench.folder.remove_run(job.id)


def _explain(error: Exception) -> str:
    """In words that name no path."""
    if isinstance(error, RegistryUnavailable | TuningUnavailable):
        return error.message
    if isinstance(error, OSError):
        return f"the server's disk failed ({error.strerror or type(error).__name__})"
    return "the server's books could not be kept"
