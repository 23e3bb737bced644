"""Job: one tuning run that a server does on its own, and where it stands."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from app.errors import InvalidInput, SoftswapError


class JobStatus(StrEnum):
    """Queued, running and paused jobs may still become any other; the rest are final."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


UNFINISHED = tuple(status for status in JobStatus if not status.is_final)


class Order(StrEnum):
    """What a client may ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"

    def apply(self, status: JobStatus) -> JobStatus:
        """The status a job of `status` gets. Asking twice is no error. Raises InvalidInput: the job has ended."""
        if status is _ORDER_TO_STATUS[self] or (self is Order.RESUME and status is JobStatus.RUNNING):
            return status
        if status.is_final:
            raise InvalidInput(
                f"the job has {_PAST[status]}, so it cannot be {_PARTICIPLE[self]}", param="fine_tuning_job_id"
            )
        return _ORDER_TO_STATUS[self]


_ORDER_TO_STATUS = {
    Order.CANCEL: JobStatus.CANCELLED,
    Order.PAUSE: JobStatus.PAUSED,
    Order.RESUME: JobStatus.QUEUED,
}
_PARTICIPLE = {Order.CANCEL: "cancelled", Order.PAUSE: "paused", Order.RESUME: "resumed"}
_PAST = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.CANCELLED: "been cancelled"}


@dataclass(frozen=True)
class JobSpec:
    """What a job is asked to do, in JSON's types, fixed when it is created.

    Attributes:
        task, alias: where the result is published, and the alias that shall mean it; None moves none.
        model: as asked for: the backbone's name, or what `init_version` was found by.
        init_version: pinned id of the version that tuning goes on from.
        training_file, validation_file: ids of uploads.
        template, labels: None leaves them to the tuner.
        hyperparameters: fields of TuneConfig that were asked for.
        search: fields of Search that were asked for.
        learning_rate_multiplier: of the learning rates that are tried where none was asked for.
        method: OpenAI's `method` object, as it is shown again.
        seed: of the request; also in `search`.
        teacher_text: a written prompt to be distilled; the training file holds inputs then.
        teacher_version: or pinned id of a version to be distilled.
        metadata: the caller's own.
    """

    task: str
    alias: str | None
    model: str
    training_file: str
    method: Mapping[str, Any]
    validation_file: str | None = None
    init_version: str | None = None
    template: str | None = None
    labels: tuple[str, ...] | None = None
    description: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_multiplier: float = 1.0
    seed: int = 0
    teacher_text: str | None = None
    teacher_version: str | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def has_teacher(self) -> bool:
        return self.teacher_text is not None or self.teacher_version is not None

    @property
    def provenance_method(self) -> str:
        """How its versions came to be."""
        return "distillation" if self.has_teacher else "prompt_tuning"

    @property
    def file_ids(self) -> tuple[str, ...]:
        """Of the uploads it needs."""
        return (self.training_file,) if self.validation_file is None else (self.training_file, self.validation_file)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JobSpec:
        labels = fields["labels"]
        return cls(**{**fields, "labels": None if labels is None else tuple(labels)})


@dataclass(frozen=True)
class JobError:
    """Why a job failed, in OpenAI's words."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: SoftswapError) -> JobError:
        return cls(error.code, error.message, error.param)


@dataclass(frozen=True)
class Job:
    """Attributes:
    created_at, finished_at, estimated_finish: seconds since 1970.
    num_runs: how often it was taken up: once, and again after each pause or restart.
    step, num_steps: updates done as far as they are recorded, and of the whole run once it has begun.
    version: pinned id of what it published as its result.
    trained_tokens: of the examples, text and answer, each as often as a member learned from it.
    result_file: id of the file with its figures.
    """

    id: str
    status: JobStatus
    spec: JobSpec
    created_at: int
    finished_at: int | None = None
    num_runs: int = 0
    step: int = 0
    num_steps: int | None = None
    estimated_finish: int | None = None
    version: str | None = None
    error: JobError | None = None
    trained_tokens: int = 0
    result_file: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A state of an unfinished run, published as a version of its own.

    Attributes:
        step: updates done when it was the best so far.
        version: pinned id.
        metric, value: by which it was the best.
        train_loss: of that update; None for the initialisation.
    """

    id: str
    job_id: str
    step: int
    version: str
    metric: str
    value: float
    train_loss: float | None
    created_at: int


def new_id(kind: str) -> str:
    """Args: kind: the prefix OpenAI gives such ids: "file", "ftjob" or "ftckpt"."""
    return f"{kind}-{uuid.uuid4().hex[:24]}"
