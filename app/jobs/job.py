"""Job: work that a server does on its own, and where it stands."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.errors import InvalidInput


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


_ORDER_TO_STATUS = {Order.CANCEL: JobStatus.CANCELLED, Order.PAUSE: JobStatus.PAUSED, Order.RESUME: JobStatus.QUEUED}
_PARTICIPLE = {Order.CANCEL: "cancelled", Order.PAUSE: "paused", Order.RESUME: "resumed"}
_PAST = {JobStatus.SUCCEEDED: "succeeded", JobStatus.FAILED: "failed", JobStatus.CANCELLED: "been cancelled"}


@dataclass(frozen=True)
class JobError:
    """Why a job failed, in OpenAI's words."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Job:
    """Attributes:
    spec: what it was asked to do, a JSON document that only its kind of work can read.
    created_at, finished_at, estimated_finish: seconds since 1970.
    num_runs: attempts at it: one, and another after each pause or restart.
    step, num_steps: updates recorded as done, and of the whole run once it has begun.
    version: the name of what it published as its result.
    trained_tokens: tokens it has learned from, counted again for each pass.
    result_file: id of the file with its figures.
    """

    id: str
    status: JobStatus
    spec: Mapping[str, Any]
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
    """A state of an unfinished run, published under a name of its own.

    Attributes:
        step: updates done when it was the best so far.
        version: that name.
        metric, value: by which it was the best.
        train_loss: of that update; None before the first.
    """

    id: str
    job_id: str
    step: int
    version: str
    metric: str
    value: float
    train_loss: float | None
    created_at: int

    @property
    def metrics(self) -> dict[str, float]:
        loss = {} if self.train_loss is None else {"train_loss": self.train_loss}
        return {"step": self.step, f"valid_{self.metric}": self.value, **loss}


def new_id(kind: str) -> str:
    """Args: kind: the prefix OpenAI gives such ids: "file", "ftjob" or "ftckpt"."""
    return f"{kind}-{uuid.uuid4().hex[:24]}"
