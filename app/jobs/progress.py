"""ProgressLog: collects what one attempt at a job reports, and writes it into the job's record and its events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from app.jobs.event_log import NewEvent
from app.jobs.job import Job

if TYPE_CHECKING:
    from app.jobs.job_store import JobStore

FLUSH_EVERY_S: Final = 0.25
"""A transaction waits for the disk; one for each update would slow a fast run down."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come, under the names of the job's columns."""

    step: int
    num_steps: int
    trained_tokens: int
    estimated_finish: int | None


class ProgressLog:
    """`begin`, `advance` and `add` are called inside slices and only remember; `flush` writes, between slices."""

    def __init__(self, jobs: JobStore, job: Job) -> None:
        self._jobs = jobs
        self._job = job
        self.step, self.num_steps = job.step, job.num_steps or 0
        self._trained_tokens = job.trained_tokens
        self._pending: list[NewEvent] = []
        self._began_s = self._flushed_s = time.monotonic()
        self._first_step: int | None = None

    def begin(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def advance(self, step: int, *, num_tokens: int, trained_tokens: int) -> None:
        """An update is done. Args: num_tokens: learned from in this update. trained_tokens: in all so far."""
        self._first_step = step if self._first_step is None else self._first_step
        self.step, self._trained_tokens = step, trained_tokens
        self._jobs.count_update(num_tokens=num_tokens)

    def add(self, event: NewEvent) -> None:
        self._pending.append(event)

    def flush_if_due(self) -> None:
        if self._pending and time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Everything reported is on disk when this returns."""
        events, self._pending = self._pending, []
        progress = Progress(self.step, self.num_steps, self._trained_tokens, self._estimate_finish())
        self._jobs.record(self._job, events, progress, redone=self._redone)
        self._flushed_s = time.monotonic()

    @property
    def _redone(self) -> range:
        """Updates of which this attempt has reported everything there is."""
        return range(0) if self._first_step is None else range(self._first_step, self.step)

    def _estimate_finish(self) -> int | None:
        """Seconds since 1970, by this attempt's own pace so far."""
        if self._first_step is None:
            return None
        pace_s = (time.monotonic() - self._began_s) / (self.step - self._first_step + 1)
        return int(time.time() + pace_s * (self.num_steps - self.step))
