"""Attempt: one job at work, from the moment the runner claims it until it ends or has to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from app.engine.threads.device_lease import Lease
from app.errors import InvalidInput
from app.jobs.event_log import NewEvent
from app.jobs.job import Job
from app.jobs.job_store import JobStore, JobStores
from app.jobs.work import Candidate, JobKind, SavedState

NUM_CHECKPOINT_MOMENTS: Final = 4
MAX_FIGURES: Final = 1_000_000
FLUSH_EVERY_S: Final = 0.25
"""A transaction waits for the disk; one for each update would slow a fast run down."""
Result = TypeVar("Result")


class _MustLeaveError(Exception):
    """The server stops, or the job was paused or cancelled, while the result is measured."""


class Attempt:
    """Used once. Everything but `_advance` happens on the runner's thread, which may wait for the disk.

    Args:
        plan: as the kind of job made it.
        lease: how the work gets the device.
        save_every_s: seconds after which the state is saved; what was done since is done again after a crash.
        should_stop: whether the server is stopping; asked after every slice.
    """

    def __init__(
        self,
        stores: JobStores,
        kind: JobKind,
        job: Job,
        plan: Any,
        *,
        lease: Lease,
        save_every_s: float,
        should_stop: Callable[[], bool],
    ) -> None:
        """Raises what JobKind.start raises, and CorruptState."""
        self._stores = stores
        self._kind = kind
        self._job = job
        self._lease = lease
        self._save_every_s = save_every_s
        self._should_stop = should_stop
        self._progress = ProgressLog(stores.jobs, job)
        self._work = kind.start(job, plan, stores.folder.read_run(job.id), self._progress)
        self._run = self._work.run
        self._saved_s = time.monotonic()
        self._checkpoint_steps = [each.step for each in stores.checkpoints.of(job.id)]
        self._quarter = job.step * NUM_CHECKPOINT_MOMENTS // job.num_steps if job.num_steps else 0

    def run(self) -> None:
        """Until the job has ended, was paused or cancelled, or the server stops.

        Raises what the work raises; what was published by then stays.
        """
        while not self._run.is_done:
            self._run.prepare()
            state, candidate = self._lease(self._advance)
            self._progress.flush_if_due()
            if candidate is not None and not self._is_over():
                self._publish_checkpoint(candidate)
            if state is not None:
                self._save(state)
            if not self._run.is_done and self._must_leave(is_saved=state is not None):
                return self._leave()
        return self._end()

    def _advance(self) -> tuple[SavedState | None, Candidate | None]:
        """On the device's thread, where tensors are read. Returns what to save and what to publish, if it is time."""
        self._run.advance()
        if not self._run.can_save:
            return None, None
        return self._run.state() if self._is_time_to_save() else None, self._find_candidate()

    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved_s >= self._save_every_s or self._is_called_off()

    def _is_called_off(self) -> bool:
        return self._should_stop() or not self._stores.jobs.is_running(self._job.id)

    def _is_over(self) -> bool:
        return self._stores.jobs.is_over(self._job.id)

    def _find_candidate(self) -> Candidate | None:
        """The best state so far, if it is better than the last checkpoint and than the start.

        Looked for until the first improvement, and then whenever another quarter of the updates is done.
        """
        step = self._run.step
        quarter = step * NUM_CHECKPOINT_MOMENTS // self._run.num_steps  # may be fewer or more updates than it was
        published = [each for each in self._checkpoint_steps if each <= step]
        is_time = quarter > self._quarter or not published
        self._quarter = max(quarter, self._quarter)
        return self._work.find_candidate(max(published, default=0)) if is_time else None

    def _publish_checkpoint(self, candidate: Candidate) -> None:
        """Unless it would be removed at once: a run that is repeated after a crash comes by what was removed before."""
        num_newer = sum(step > candidate.step for step in self._checkpoint_steps)
        if num_newer < self._work.num_checkpoints_kept:
            self._stores.checkpoints.add(self._job.id, candidate, self._work.publish_checkpoint(candidate))
            self._checkpoint_steps.append(candidate.step)
            self._remove_old_checkpoints()

    def _remove_old_checkpoints(self, *result: str) -> None:
        """What is published goes first, so that a crash in between leaves nothing that no list names.

        Args: result: the name of the job's, which stays.
        """
        unfinished = [job for job in self._stores.jobs.unfinished() if job.id != self._job.id]
        needed = {*result, *(name for job in unfinished for name in self._kind.names_needed(job.spec))}
        for old in self._stores.checkpoints.of(self._job.id)[: -self._work.num_checkpoints_kept]:
            if old.version not in needed and self._work.remove_checkpoint(old.version):
                self._stores.checkpoints.remove(old.id)

    def _save(self, state: SavedState) -> None:
        """Events first: none up to the saved update may be missing after a crash."""
        self._progress.flush()
        self._stores.folder.save_run(self._job.id, state.to_bytes())
        self._saved_s = time.monotonic()

    def _must_leave(self, *, is_saved: bool) -> bool:
        """A cancelled job is left at once, any other only when its state is saved."""
        if self._stores.jobs.is_running(self._job.id):
            return is_saved and self._should_stop()
        return is_saved or self._is_over()

    def _leave(self) -> None:
        """To continue later from what was saved, unless the job was cancelled."""
        if self._is_over():
            self._stores.folder.remove_run(self._job.id)
        else:
            self._stores.jobs.put_back(self._job.id, "Job queued again: the server is stopping")

    def _end(self) -> None:
        self._progress.flush()
        work = self._work
        if work.failure is not None:
            if work.best.step > max(self._checkpoint_steps, default=0):
                self._publish_checkpoint(work.best)
            raise work.failure
        version = work.publish_result()
        self._stores.checkpoints.add(self._job.id, work.best, version)
        self._remove_old_checkpoints(version)
        try:
            work.measure_result(self._take_turn)
        except _MustLeaveError:
            self._leave()
            return
        self._succeed(version)
        if self._is_over():
            self._stores.folder.remove_run(self._job.id)

    def _take_turn(self, work: Callable[[], Result]) -> Result:
        """A turn on the device, as long as the job may continue."""
        if self._is_called_off():
            raise _MustLeaveError
        return self._lease(work)

    def _succeed(self, version: str) -> None:
        """The result is released and the job ends as one decision, which no order can come between."""
        result_file = self._keep_figures()
        jobs = self._stores.jobs
        with jobs.deciding(self._job.id) as is_still_running:
            if is_still_running:
                warning = self._work.release()
                if warning is not None:
                    jobs.warn(self._job.id, warning)
                jobs.succeed(self._job.id, version, note=self._work.note, result_file=result_file)

    def _keep_figures(self) -> str | None:
        """Id of the file; None if there is no room for it."""
        events = self._stores.events.since(self._job.id, None, MAX_FIGURES)
        try:
            return self._stores.files.add_results(f"{self._job.id}.csv", self._kind.write_figures(events)).id
        except InvalidInput as error:
            self._stores.jobs.warn(self._job.id, f"the figures stay in the events alone: {error.message}")
            return None


class ProgressLog:
    """`advance` and `add` are called inside slices and only remember; `flush` writes, between slices.

    Attributes: left_s: seconds until the work is done, as it says itself; None leaves it to the pace so far.
    """

    def __init__(self, jobs: JobStore, job: Job) -> None:
        self._jobs = jobs
        self._job = job
        self.step, self.num_steps = job.step, job.num_steps or 0
        self._trained_tokens = job.trained_tokens
        self.left_s: float | None = None
        self._pending: list[NewEvent] = []
        self._began_s = self._flushed_s = time.monotonic()
        self._first_step: int | None = None

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
        # Of these updates this attempt has reported everything there is.
        redone = range(0) if self._first_step is None else range(self._first_step, self.step)
        done = {"step": self.step, "num_steps": self.num_steps, "trained_tokens": self._trained_tokens}
        finish = self._estimate_finish()
        self._jobs.record(self._job, events, redone=redone, estimated_finish=finish, **done)
        self._flushed_s = time.monotonic()

    def _estimate_finish(self) -> int | None:
        """Seconds since 1970, as the work says, or by this attempt's own pace so far."""
        if self.left_s is not None:
            return int(time.time() + self.left_s)
        if self._first_step is None:
            return None
        pace_s = (time.monotonic() - self._began_s) / (self.step - self._first_step + 1)
        return int(time.time() + pace_s * (self.num_steps - self.step))
