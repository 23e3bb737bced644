"""What jobs are told about the work they do: how to plan it, run it and publish what comes of it.

A job's specification, plan and saved state are opaque here; only the kind of job knows what they mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from app.engine.threads.device_lease import Lease
    from app.errors import SoftswapError
    from app.jobs.attempt import ProgressLog
    from app.jobs.event_log import JobEvent
    from app.jobs.job import Job


@dataclass(frozen=True)
class Candidate:
    """The best state of a run so far, which can be published as a checkpoint.

    Attributes:
        step: updates done when it was measured.
        metric, value: by which it is the best.
        train_loss: of the update before; None before the first.
        content: what publishing it takes; read by the work alone.
    """

    step: int
    metric: str
    value: float
    train_loss: float | None
    content: Any


class SavedState(Protocol):
    """A copy of everything a run continues from; turning it into bytes needs no device."""

    def to_bytes(self) -> bytes: ...


class SlicedRun(Protocol):
    """What is computed, slice by slice."""

    @property
    def step(self) -> int:
        """Updates done."""

    @property
    def num_steps(self) -> int: ...

    @property
    def can_save(self) -> bool:
        """Whether the last slice completed an update: only then may `state` be called, or a candidate be looked for."""

    @property
    def is_done(self) -> bool: ...

    def prepare(self) -> None:
        """Before each slice, whatever needs no device."""

    def advance(self) -> None:
        """Compute one slice, on the device's thread."""

    def state(self) -> SavedState:
        """On the device's thread."""


class Work(Protocol):
    """One attempt at a job. Methods are called on the runner's thread, which may wait for the disk, except where noted.

    Publishing again after a crash must find what was published before.
    """

    @property
    def run(self) -> SlicedRun: ...

    def find_candidate(self, published_step: int) -> Candidate | None:
        """The best state, if it was measured after `published_step`. On the device's thread."""

    def publish_checkpoint(self, candidate: Candidate) -> str:
        """The name of what was published."""

    @property
    def num_checkpoints_kept(self) -> int:
        """How many of the newest stay; each is better than those before it."""

    def remove_checkpoint(self, name: str) -> bool:
        """Whether what was published under this name is gone now. It stays if others refer to it."""

    # From here on: of work that is done.

    @property
    def failure(self) -> SoftswapError | None:
        """Why there is no result, although the best state may be good."""

    @property
    def best(self) -> Candidate: ...

    def publish_result(self) -> str:
        """The name of what was published; nothing refers to it yet."""

    def measure_result(self, lease: Lease) -> None:
        """Whatever `release` will need to know. Raises what `lease` raises; what was measured by then is kept."""

    def release(self) -> str | None:
        """Let callers get the result. Returns why they do not, if they do not."""

    @property
    def note(self) -> str:
        """What the last event says after the result's name."""


class JobKind(Protocol):
    """Everything that jobs need to know about one kind of work."""

    def plan(self, spec: Mapping[str, Any]) -> Any:
        """Read and check everything that needs no device. Raises what a client should be told."""

    def reason_to_wait(self, spec: Mapping[str, Any]) -> str | None:
        """Why only another server can do it; None if this one can."""

    def names_needed(self, spec: Mapping[str, Any]) -> Collection[str]:
        """Of what is published and must stay as long as the job has not ended."""

    def start(self, job: Job, plan: Any, state: bytes | None, progress: ProgressLog) -> Work:
        """Args: state: what the work continues from. progress: told what happens."""

    def write_figures(self, events: Sequence[JobEvent]) -> bytes:
        """The file of a job's figures, from its events."""
