"""A job is for the backbone that it was created on, whichever server has its state folder next."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.jobs.job import JobStatus
from tests.support.tuning_jobs import Gate, all_events, allow_until, make_spec, open_service, wait_for, wait_until


@pytest.mark.parametrize("num_steps", [0, 3])
def test_another_backbones_server_leaves_a_job_queued_and_does_its_own(tmp_path: Path, num_steps: int) -> None:
    gate = Gate()
    service = open_service(tmp_path, gate)
    job = service.create_job(make_spec(service))
    if num_steps:
        service.start()
        allow_until(gate, lambda: service.jobs.get(job.id).step >= num_steps)
        service.stop()
        gate.open()
    service.close()

    other = open_service(tmp_path, architecture="qwen2")
    other.start()
    own = other.create_job(make_spec(other, task="moods"))
    wait_for(other, own, JobStatus.SUCCEEDED)
    assert other.jobs.get(job.id).status is JobStatus.QUEUED
    told = [event.message for event in all_events(other, job) if event.level == "warn"]
    assert len(told) == 1
    assert told[0].startswith("Job stays queued: it was created for ")
    other.close()

    again = open_service(tmp_path)
    again.start()
    done = wait_for(again, job, JobStatus.SUCCEEDED)
    steps = [event.data["step"] for event in all_events(again, job) if event.data and "train_loss" in event.data]
    assert steps == list(range(1, 13))
    assert done.version is not None
    wait_until(lambda: again.registry.resolve("likes").number == int(done.version.partition("@")[2]))
    again.close()


def test_a_job_of_before_that_names_no_backbone_runs(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    document = service.create_job(make_spec(service)).spec
    old = service.jobs.create({name: value for name, value in document.items() if name != "backbone"}, "queued")
    service.start()
    wait_for(service, old, JobStatus.SUCCEEDED)
    service.close()
