"""TuningService: everything a server tunes with: uploads, jobs, their events and checkpoints, and the runner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.jobs.checkpoints import CheckpointStore
from app.jobs.database import Database
from app.jobs.event_log import EventLog
from app.jobs.files import UploadStore
from app.jobs.job import Job, JobSpec, Order
from app.jobs.job_store import JobStore
from app.jobs.notifier import Notifier
from app.jobs.state_folder import StateFolder
from app.telemetry import Metrics
from app.tuning.job.attempt import Bench
from app.tuning.job.planner import Planner
from app.tuning.job.runner import JobRunner

if TYPE_CHECKING:
    from app.engine.threads.slices import Lease
    from app.model.backbone import Backbone
    from app.registry.registry import Registry

SAVE_EVERY_S: Final = 5.0


class TuningService:
    """One for a state folder. Jobs that a crash or a stop interrupted are in the queue again when this is made.

    Args:
        lease: how a run gets at the device.
        slice_s: see Planner.
        save_every_s: see Bench.
        metrics: told of jobs and of what they learn; None counts for nobody.

    Raises TuningUnavailable: another server has the folder, or it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        backbone: Backbone,
        registry: Registry,
        lease: Lease,
        *,
        slice_s: float | None = None,
        save_every_s: float = SAVE_EVERY_S,
        metrics: Metrics | None = None,
    ) -> None:
        self._folder = StateFolder(path)
        try:
            self._database = Database(self._folder.database_path)
        except BaseException:
            self._folder.close()
            raise
        self.notifier = Notifier()
        self.events = EventLog(self._database)
        self.jobs = JobStore(self._database, self.events, self.notifier, metrics or Metrics())
        self.checkpoints = CheckpointStore(self._database)
        self.files = UploadStore(self._database, self._folder)
        self._planner = Planner(backbone, registry, self.files, slice_s=slice_s)
        bench = Bench(
            jobs=self.jobs,
            checkpoints=self.checkpoints,
            events=self.events,
            files=self.files,
            folder=self._folder,
            registry=registry,
            backbone=backbone,
            planner=self._planner,
            lease=lease,
            save_every_s=save_every_s,
        )
        self._runner = JobRunner(bench)
        self._recover()

    def start(self) -> None:
        self._runner.start()

    def stop(self) -> None:
        """Begin to stop, without waiting: the present job is saved and queued again; who follows jobs is told."""
        self.notifier.close()
        self._runner.stop()

    def close(self) -> None:
        self.stop()
        self._runner.close()
        self._database.close()
        self._folder.close()

    def create_job(self, spec: JobSpec) -> Job:
        """Check a job as far as that can be done without the device, and queue it.

        Raises what Planner.plan and JobStore.create raise.
        """
        plan = self._planner.plan(spec)
        file = self.files.get(spec.training_file, param="training_file")
        what = "inputs for the teacher" if spec.has_teacher else "examples"
        message = (
            f"Created fine-tuning job: {len(plan.train)} {what} to learn from, {len(plan.validation)} to measure with"
        )
        if file.num_duplicates:
            message += f"; {file.num_duplicates} of the training file's are duplicates"
        job = self.jobs.create(spec, message)
        self._runner.wake()
        return job

    def give(self, job_id: str, order: Order) -> Job:
        """Cancel, pause or resume a job. Raises NoSuchJob, InvalidInput."""
        job = self.jobs.give(job_id, order)
        self._runner.wake()
        return job

    def delete_file(self, file_id: str) -> None:
        """Raises NoSuchFile. InvalidInput: a job that has not ended needs it."""
        unfinished = [job.spec for job in self.jobs.unfinished()]
        self.files.delete(file_id, {name for spec in unfinished for name in spec.file_ids})

    def _recover(self) -> None:
        self.jobs.recover()
        unfinished = {job.id for job in self.jobs.unfinished()}
        self._folder.keep_only(digests=self.files.digests(), job_ids=unfinished)
