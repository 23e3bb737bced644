"""Session: one job at work, from the moment a runner takes it up until it ends or has to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from app.engine.threads.slices import Lease
from app.errors import GateFailed, InvalidInput, NumericalError
from app.jobs.checkpoints import CheckpointStore
from app.jobs.event_log import EventLog
from app.jobs.figures import MAX_FIGURES, write_figures
from app.jobs.files import UploadStore
from app.jobs.job import Job
from app.jobs.job_store import JobStore
from app.jobs.state_folder import StateFolder
from app.registry.reference import name_together
from app.tuning.job.planner import Planner
from app.tuning.job.publisher import Candidate, Publisher
from app.tuning.job.recorder import Recorder
from app.tuning.run.run import Mark
from app.tuning.run.run_state import RunState

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.tuning.result import TuneResult

NUM_CHECKPOINT_MOMENTS: Final = 4
Result = TypeVar("Result")


class _HasToLeaveError(Exception):
    """The server stops, or the job was paused or cancelled, while the result is measured."""


@dataclass(frozen=True)
class Bench:
    """What sessions work with.

    Attributes:
        save_every_s: seconds after which a run's state is saved; what was done since is done again after a crash.
    """

    jobs: JobStore
    checkpoints: CheckpointStore
    events: EventLog
    files: UploadStore
    folder: StateFolder
    registry: Registry
    backbone: Backbone
    planner: Planner
    lease: Lease
    save_every_s: float


@dataclass(frozen=True)
class Slice:
    """What came of one turn on the device; all that is read from tensors is read there."""

    mark: Mark
    state: RunState | None
    candidate: Candidate | None


class Session:
    """Used once. Everything but `_advance` happens on the runner's thread, which may wait for the disk.

    Args: should_stop: whether the server is stopping; asked after every slice.
    """

    def __init__(self, bench: Bench, job: Job, should_stop: Callable[[], bool]) -> None:
        """Raises what Planner raises, and CorruptState."""
        self._bench = bench
        self._job = job
        self._should_stop = should_stop
        self._recorder = Recorder(bench.jobs, job)
        plan = bench.planner.plan(job.spec)
        self._run = bench.planner.start(plan, bench.folder.read_run(job.id), self._recorder.hear)
        self._publisher = Publisher(bench.backbone, bench.registry, job, self._run)
        self._saved_s = time.monotonic()
        self._checkpoint_steps = [each.step for each in bench.checkpoints.of(job.id)]

    def work(self) -> None:
        """Until the job has ended, was paused or cancelled, or the server stops.

        Raises what the run raises; what was published by then stays.
        """
        while True:
            self._run.prepare()
            done = self._bench.lease(self._advance)
            self._recorder.flush_if_due()
            if done.candidate is not None and not self._bench.jobs.is_over(self._job.id):
                self._publish_checkpoint(done.candidate)
            if done.state is not None:
                self._save(done.state)
            if done.mark is Mark.END:
                return self._end()
            if self._has_to_leave(is_saved=done.state is not None):
                return self._leave()

    def _advance(self) -> Slice:
        """On the device's thread."""
        mark = self._run.advance()
        is_between = mark is Mark.UPDATE
        return Slice(
            mark=mark,
            state=self._run.state() if is_between and self._is_time_to_save() else None,
            candidate=self._find_candidate() if is_between and self._is_time_to_publish() else None,
        )

    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved_s >= self._bench.save_every_s or self._is_called_off()

    def _is_called_off(self) -> bool:
        return self._should_stop() or not self._bench.jobs.is_running(self._job.id)

    def _is_time_to_publish(self) -> bool:
        """At the first improvement, and then whenever another quarter of the updates is done."""
        step, num_steps = self._run.step, self._run.num_steps
        quarter_before, quarter = ((each * NUM_CHECKPOINT_MOMENTS) // num_steps for each in (step - 1, step))
        return quarter > quarter_before or not any(each <= step for each in self._checkpoint_steps)

    def _find_candidate(self) -> Candidate | None:
        """The best state so far, if it is better than the last checkpoint and than the initialisation."""
        leader = self._run.leader
        published = max((each for each in self._checkpoint_steps if each <= self._run.step), default=0)
        if leader is None or leader.best is None or leader.best.step <= published:
            return None
        score = leader.best.score
        return Candidate(leader.best_prompt(self._bench.backbone), leader.best.step, score.metric, score.value)

    def _publish_checkpoint(self, candidate: Candidate) -> None:
        version = self._publisher.publish_checkpoint(candidate)
        self._add_checkpoint(candidate, version.id)
        self._checkpoint_steps.append(candidate.step)

    def _add_checkpoint(self, candidate: Candidate, version_id: str) -> None:
        self._bench.checkpoints.add(
            self._job.id,
            step=candidate.step,
            version=version_id,
            metric=candidate.metric,
            value=candidate.value,
            train_loss=self._recorder.train_loss,
        )

    def _save(self, state: RunState) -> None:
        """Events first: none up to the saved update may be missing after a crash."""
        self._recorder.flush()
        self._bench.folder.save_run(self._job.id, state.to_bytes())
        self._saved_s = time.monotonic()

    def _has_to_leave(self, *, is_saved: bool) -> bool:
        """A cancelled job is left at once, any other only when its state is saved."""
        if self._bench.jobs.is_running(self._job.id):
            return is_saved and self._should_stop()
        return is_saved or self._bench.jobs.is_over(self._job.id)

    def _leave(self) -> None:
        """To go on later from what was saved, unless the job was cancelled."""
        if self._bench.jobs.is_over(self._job.id):
            self._bench.folder.remove_run(self._job.id)
        else:
            self._bench.jobs.put_back(self._job.id, "Job queued again: the server is stopping")

    def _end(self) -> None:
        self._recorder.flush()
        result = self._run.result
        if result.stop_reason == "not finite":
            self._publish_last_good(result)
            raise NumericalError("tuning diverged: no member's loss is finite any more; try smaller learning rates")
        version, *others = (self._publisher.publish_result(each) for each in (result, *result.others))
        self._add_checkpoint(_best_of(result), version.id)
        try:
            self._publisher.find_scores(version, self._take_turn, self._run.num_rows_at_once)
        except _HasToLeaveError:
            self._leave()
            return
        notes = result.note.splitlines()
        notes += [f"{name_together(each.id for each in [version, *others])} answers as an ensemble"] if others else []
        self._succeed(version, "".join(f"; {note}" for note in notes))
        if self._bench.jobs.is_over(self._job.id):
            self._bench.folder.remove_run(self._job.id)

    def _take_turn(self, work: Callable[[], Result]) -> Result:
        """A turn on the device, as long as the job may go on."""
        if self._is_called_off():
            raise _HasToLeaveError
        return self._bench.lease(work)

    def _succeed(self, version: Version, note: str) -> None:
        """The alias moves and the job ends as one decision, which no order can come between."""
        result_file = self._keep_figures()
        with self._bench.jobs.deciding(self._job.id) as is_still_running:
            if is_still_running:
                try:
                    self._publisher.move_alias(version)
                except GateFailed as error:
                    self._bench.jobs.warn(self._job.id, f"{self._job.spec.alias} stays where it is: {error.message}")
                self._bench.jobs.succeed(self._job.id, version.id, note=note, result_file=result_file)

    def _keep_figures(self) -> str | None:
        """Id of the file; None where there is no room for it."""
        events = self._bench.events.since(self._job.id, None, MAX_FIGURES)
        try:
            return self._bench.files.add_results(f"{self._job.id}.csv", write_figures(events)).id
        except InvalidInput as error:
            self._bench.jobs.warn(self._job.id, f"the figures stay in the events alone: {error.message}")
            return None

    def _publish_last_good(self, result: TuneResult) -> None:
        if result.best_step > max(self._checkpoint_steps, default=0):
            self._publish_checkpoint(_best_of(result))


def _best_of(result: TuneResult) -> Candidate:
    is_best = (result.best_step, result.member)
    event = next(event for event in result.history if (event.step, event.member) == is_best)
    return Candidate(result.prompt, event.step, event.metric, event.value)
