"""A tuning service on the tiny backbone; through its lease tests hold the device back, slow it down and break it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from app.engine.threads.device_lease import Lease, own_device
from app.jobs.event_log import JobEvent
from app.jobs.job import Job, JobStatus
from app.jobs.runner import RETRY_S
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.settings import KEEP_CHECKPOINTS
from app.tuning.job.kind import JobSpec
from app.tuning.job.service import TuningService
from tests.support.models import tiny_backbone

Result = TypeVar("Result")
ROWS = [{"input": f"{'good' if n % 2 else 'bad'} {n}", "target": "yes" if n % 2 else "no"} for n in range(60)]
DATA = "\n".join(json.dumps(row) for row in ROWS).encode()
QUICK = {"max_steps": 12, "batch_size": 8, "num_virtual_tokens": 2, "max_target_tokens": 8}
ONE_MEMBER = {"learning_rates": [0.1], "seeds": [0], "inits": ["vocab"]}


class Gate:
    """A lease that lets `allow` slices pass and then waits; `open` lets all pass. `fault` is raised instead of one."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = threading.Event()
        self.num_slices = 0
        self.fault: BaseException | None = None

    def allow(self, num_slices: int) -> None:
        for _ in range(num_slices):
            self._permits.release()

    def open(self) -> None:
        self._is_open.set()
        self._permits.release()

    def __call__(self, work: Callable[[], Result]) -> Result:
        if not self._is_open.is_set():
            self._permits.acquire()
        self.num_slices += 1
        if self.fault is not None:
            raise self.fault
        return work()


def open_service(
    folder: Path,
    lease: Lease = own_device,
    *,
    save_every_s: float = 0.0,
    retry_s: float = RETRY_S,
    keep_checkpoints: int = KEEP_CHECKPOINTS,
    max_positions: int | None = None,
    architecture: str = "llama",
) -> TuningService:
    """Registry in `folder/prompts`, state in its `.state`."""
    backbone = tiny_backbone(architecture)
    registry = Registry(FileStore(folder / "prompts"), backbone, max_positions=max_positions)
    state = folder / "prompts" / ".state"
    times = {"save_every_s": save_every_s, "retry_s": retry_s}
    return TuningService(state, backbone, registry, lease, keep_checkpoints=keep_checkpoints, **times)


def open_registry(folder: Path) -> Registry:
    return Registry(FileStore(folder / "prompts"), tiny_backbone())


def make_spec(service: TuningService, **changes: object) -> JobSpec:
    """A quick job for the task `likes`, with its file uploaded. `hyperparameters` and `search` are added."""
    hyperparameters = {**QUICK, **changes.pop("hyperparameters", {})}
    search = {**ONE_MEMBER, **changes.pop("search", {})}
    spec = JobSpec(
        task="likes",
        alias="live",
        model=tiny_backbone().name,
        training_file=changes.pop("training_file", None) or service.files.add("likes.jsonl", DATA).id,
        method={"type": "prompt_tuning"},
        hyperparameters=hyperparameters,
        search=search,
    )
    return replace(spec, **changes)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.002)


def allow_until(gate: Gate, condition: Callable[[], bool]) -> None:
    """One slice after another."""

    def is_there() -> bool:
        num_slices = gate.num_slices
        gate.allow(1)
        wait_until(lambda: gate.num_slices > num_slices)
        return condition()

    wait_until(is_there)


def wait_for(service: TuningService, job: Job, status: JobStatus) -> Job:
    wait_until(lambda: service.jobs.get(job.id).status is status or service.jobs.get(job.id).status.is_final)
    now = service.jobs.get(job.id)
    assert now.status is status, now
    return now


def all_events(service: TuningService, job: Job) -> list[JobEvent]:
    return service.events.since(job.id, None, 100_000)


def warnings_of(service: TuningService, job: Job) -> list[str]:
    """But for the one that the tiny backbone, which knows no words, deserves: its labels are unlikely."""
    warnings = [event.message for event in all_events(service, job) if event.level == "warn"]
    return [message for message in warnings if not message.startswith("all labels together")]


def curve(service: TuningService, job: Job) -> list[tuple[int, int, float]]:
    """(step, member or -1 for the training loss, value) of every figure recorded, in order."""
    figures = []
    for event in all_events(service, job):
        data = event.data or {}
        if "train_loss" in data:
            figures.append((data["step"], -1, data["train_loss"]))
        elif "member" in data:
            value = next(value for name, value in data.items() if name.startswith("valid_"))
            figures.append((data["step"], data["member"], value))
    return figures
