"""Files, jobs, events and checkpoints as `/v1/files` and `/v1/fine_tuning/jobs` show them."""

from __future__ import annotations

from dataclasses import asdict

from app.http.tuning.files_schema import FileObject
from app.http.tuning.fine_tuning_schema import CheckpointObject, EventObject, JobErrorObject, JobObject
from app.jobs.event_log import JobEvent
from app.jobs.files import TrainingFile
from app.jobs.job import Checkpoint, Job
from app.tuning.job.spec import JobSpec


def file_object(file: TrainingFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose.value,
        status_details=f"{file.num_examples} examples, {file.num_duplicates} of them duplicates",
    )


def job_object(job: Job) -> JobObject:
    spec = JobSpec.from_json(job.spec)
    supervised = spec.method.get("supervised") or {}
    return JobObject(
        id=job.id,
        model=spec.model,
        created_at=job.created_at,
        finished_at=job.finished_at,
        status=job.status.value,
        error=None if job.error is None else JobErrorObject(**asdict(job.error)),
        fine_tuned_model=job.version,
        task=spec.task,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        hyperparameters=dict(supervised.get("hyperparameters") or {}),
        method=dict(spec.method),
        seed=spec.seed,
        step=job.step,
        total_steps=job.num_steps,
        estimated_finish=job.estimated_finish,
        trained_tokens=job.trained_tokens or None,
        result_files=[] if job.result_file is None else [job.result_file],
        metadata=None if spec.metadata is None else dict(spec.metadata),
    )


def event_object(event: JobEvent) -> EventObject:
    return EventObject.model_validate(
        {
            "id": event.id,
            "object": "fine_tuning.job.event",
            "created_at": event.created_at,
            "level": event.level,
            "message": event.message,
            "type": "message" if event.data is None else "metrics",
            "data": event.data,
        }
    )


def checkpoint_object(checkpoint: Checkpoint) -> CheckpointObject:
    loss = {} if checkpoint.train_loss is None else {"train_loss": checkpoint.train_loss}
    return CheckpointObject(
        id=checkpoint.id,
        created_at=checkpoint.created_at,
        fine_tuning_job_id=checkpoint.job_id,
        fine_tuned_model_checkpoint=checkpoint.version,
        step_number=checkpoint.step,
        metrics={"step": checkpoint.step, f"valid_{checkpoint.metric}": checkpoint.value, **loss},
    )
