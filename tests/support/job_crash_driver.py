"""A process that forks the tuning half of a server and kills it; test_crash.py talks to it in JSON lines.

Started once, because importing torch takes seconds. A command on standard input is one life of a service:
    {"folder": DIR, "kill_after_s": 0.3 or null}
It creates the one job of the folder if there is none, and works until the job has ended or it is killed. The answer:
    {"left_running": jobs that a start found marked as running, "status": exit code,
     "job": {...} and "weights": [before, after] if the job has ended}
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from app.jobs.job import JobStatus
from app.tuning.job.service import TuningService
from tests.support.models import tiny_backbone
from tests.support.tuning_jobs import curve, make_spec, open_registry, open_service

HYPERPARAMETERS = {"max_steps": 24, "patience": 0}
SEARCH = {"learning_rates": [0.03, 0.1], "num_cuts": 1}


def hash_weights() -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tiny_backbone().model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def live(folder: Path, pipe: int) -> None:
    """One life, from fork to exit or SIGKILL."""
    before = hash_weights()
    service = open_service(folder, save_every_s=0.02)
    found, _ = service.jobs.page(None, 10)
    running = [job.id for job in found if job.status is JobStatus.RUNNING]
    tell(pipe, {"left_running": running})
    job = found[0] if found else service.create_job(make_spec(service, hyperparameters=HYPERPARAMETERS, search=SEARCH))
    service.start()
    while not (job := service.jobs.get(job.id)).status.is_final:
        time.sleep(0.005)
    service.close()
    service = open_service(folder)
    tell(pipe, {"job": describe(service, job.id, folder), "weights": [before, hash_weights()]})
    service.close()


def describe(service: TuningService, job_id: str, folder: Path) -> dict[str, Any]:
    job, registry = service.jobs.get(job_id), open_registry(folder)
    checkpoints = service.checkpoints.of(job_id)
    return {
        "status": job.status,
        "num_runs": job.num_runs,
        "curve": curve(service, job),
        "checkpoints": [[each.step, each.value] for each in checkpoints],
        "digests": [registry.resolve(each.version).digest for each in checkpoints],
        "result": registry.resolve(job.version).digest if job.version else None,
        "num_versions": len(registry.versions("likes")),
        "leftovers": sorted(path.name for path in (folder / "prompts" / ".state" / "runs").glob("*")),
    }


def tell(pipe: int, facts: dict[str, Any]) -> None:
    os.write(pipe, (json.dumps(facts) + "\n").encode())


def run_life(command: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            live(Path(command["folder"]), writer)
        except BaseException as error:
            os.write(2, f"a life ended badly: {error!r}\n".encode())
            os._exit(3)
        os._exit(0)
    os.close(writer)
    began = time.perf_counter()
    if command["kill_after_s"] is not None:
        time.sleep(command["kill_after_s"])
        os.kill(pid, signal.SIGKILL)
    facts: dict[str, Any] = {}
    with os.fdopen(reader) as lines:
        for line in lines:
            facts |= json.loads(line)
    _, status = os.waitpid(pid, 0)
    return {**facts, "status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - began}


def main() -> None:
    torch.set_num_threads(1)
    tiny_backbone()
    print(json.dumps({"is_ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run_life(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
