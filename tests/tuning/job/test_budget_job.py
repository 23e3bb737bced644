"""A job keeps its budget, and says from its start when it will be done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.jobs.job import JobStatus, Order
from app.tuning.config import DEFAULT_BUDGET_S
from app.tuning.job.service import TuningService
from tests.support.tuning_jobs import Gate, all_events, allow_until, make_spec, open_service, wait_for

BUDGET_S = 4.0


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def service(tmp_path: Path, gate: Gate) -> Iterator[TuningService]:
    opened = open_service(tmp_path, gate)
    yield opened
    gate.open()
    opened.close()


def budgeted(service: TuningService, **hyperparameters: object) -> object:
    """A job's specification that asks for no number of updates."""
    spec = make_spec(service, search={})
    return replace(spec, hyperparameters={"max_target_tokens": 8, **hyperparameters}, search={})


def test_a_job_that_asks_for_no_number_of_updates_gets_the_default_budget(service: TuningService) -> None:
    asked = [
        service.create_job(budgeted(service, **more))  # type: ignore[arg-type]
        for more in ({}, {"budget_s": 7.0}, {"num_epochs": 2.0}, {"max_steps": 3})
    ]
    found = [job.spec["hyperparameters"].get("budget_s") for job in asked]
    assert found == [DEFAULT_BUDGET_S["cpu"], 7.0, None, None]


def test_a_job_says_from_its_start_when_it_will_be_done_and_is_done_then(service: TuningService, gate: Gate) -> None:
    job = service.create_job(budgeted(service, budget_s=BUDGET_S))  # type: ignore[arg-type]
    service.start()
    began_s = time.time()
    allow_until(gate, lambda: service.jobs.get(job.id).estimated_finish is not None)
    told = service.jobs.get(job.id)
    assert told.step == 0
    assert told.estimated_finish is not None
    assert abs(told.estimated_finish - (began_s + BUDGET_S)) <= 2
    gate.open()
    done = wait_for(service, job, JobStatus.SUCCEEDED)
    assert done.finished_at is not None
    kinds = [event.message.split()[0] for event in all_events(service, job)]
    assert kinds.index("Comparing") < kinds.index("Starts") < kinds.index("Plan:") < kinds.index("Step")


def test_a_paused_job_continues_with_the_rest_of_its_budget(service: TuningService, gate: Gate) -> None:
    job = service.create_job(budgeted(service, budget_s=60.0, max_steps=20))  # type: ignore[arg-type]
    service.start()
    allow_until(gate, lambda: service.jobs.get(job.id).step >= 2)
    service.give(job.id, Order.PAUSE)
    allow_until(gate, lambda: service.jobs.get(job.id).status is JobStatus.PAUSED)
    service.give(job.id, Order.RESUME)
    gate.open()
    done = wait_for(service, job, JobStatus.SUCCEEDED)
    events = [event.message for event in all_events(service, job)]
    assert sum(message.startswith("Plan:") for message in events) == 1, "the plan is not made anew"
    assert done.version is not None
