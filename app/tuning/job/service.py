"""TuningService: everything a server tunes with: uploads, jobs, their events and checkpoints, and the runner."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

from app.engine.threads.device_lease import Lease
from app.jobs.job import Job, Order
from app.jobs.job_store import JobStores
from app.jobs.runner import RETRY_S, JobRunner
from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.settings import KEEP_CHECKPOINTS
from app.telemetry import Metrics
from app.tuning.job.kind import JobSpec, TuningJobs

SAVE_EVERY_S: Final = 5.0


class TuningService:
    """One for each state folder.

    Args:
        lease: how a run gets the device.
        slice_s, keep_checkpoints: see TuningJobs.
        save_every_s, retry_s: see JobRunner.
        metrics: told of jobs and of what they learn; None counts nothing.

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
        keep_checkpoints: int = KEEP_CHECKPOINTS,
        save_every_s: float = SAVE_EVERY_S,
        retry_s: float = RETRY_S,
        metrics: Metrics | None = None,
    ) -> None:
        self.stores = JobStores(path, metrics or Metrics())
        self.stores.folder.note_backbone(backbone.fingerprint)
        self.files, self.jobs = self.stores.files, self.stores.jobs
        self.events, self.checkpoints = self.stores.events, self.stores.checkpoints
        self.notifier, self.registry = self.stores.notifier, registry
        self._kind = TuningJobs(backbone, registry, self.files, slice_s, keep_checkpoints)
        self.runner = JobRunner(self.stores, self._kind, lease, save_every_s=save_every_s, retry_s=retry_s)

    def start(self) -> None:
        self.runner.start()

    def stop(self) -> None:
        """Begin to stop, without waiting: the present job is saved and queued again; clients that follow are told."""
        self.notifier.close()
        self.runner.stop()

    def close(self) -> None:
        self.stop()
        self.runner.close()
        self.stores.close()

    def create_job(self, spec: JobSpec) -> Job:
        """Check a job as far as possible without the device, and queue it, with a budget if it asks for nothing else.

        Raises what TuningJobs.plan and JobStore.create raise.
        """
        document = asdict(self._kind.complete(spec))
        plan = self._kind.plan(document)
        what = "inputs for the teacher" if spec.has_teacher else "examples"
        message = (
            f"Created fine-tuning job: {len(plan.train)} {what} to learn from, {len(plan.validation)} to measure with"
        )
        if plan.look is not None:
            message = "; ".join([message, *plan.look.remarks()])
            document["data"] = plan.look.as_dict()
        job = self.jobs.create(document, message)
        self.runner.add(job, plan)
        return job

    def give(self, job_id: str, order: Order) -> Job:
        """Cancel, pause or resume a job. Raises NoSuchJob, InvalidInput."""
        job = self.jobs.give(job_id, order)
        self.runner.wake()
        return job

    def delete_file(self, file_id: str) -> None:
        """Raises NoSuchFile. InvalidInput: a job that has not ended needs it."""
        unfinished = [JobSpec.from_json(job.spec) for job in self.jobs.unfinished()]
        self.files.delete(file_id, {name for spec in unfinished for name in spec.file_ids})
