"""A job that shortens a written prompt: as durable as any other, in the teacher's half and in the student's."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.jobs.files import Purpose
from app.jobs.job import Job, JobStatus, Order
from app.registry.version import Version
from app.tuning.job.kind import JobSpec
from app.tuning.job.service import TuningService
from tests.support.tuning_jobs import (
    DATA,
    Gate,
    all_events,
    allow_until,
    curve,
    make_spec,
    open_registry,
    open_service,
    wait_for,
    wait_until,
)

pytestmark = pytest.mark.slow

INPUTS = "\n".join(f"film {a}{b}{c}" for a in "abcd" for b in "efg" for c in "0123456789abcde").encode()
WRITTEN = "Say yes or no. zz is yes, qq is no. " * 4


def _spec(service: TuningService, **changes: object) -> JobSpec:
    file = service.files.add("films.txt", INPUTS, Purpose.INPUTS)
    asked = {"task": "short", "training_file": file.id, "labels": ("no", "yes"), "teacher_text": WRITTEN}
    return make_spec(service, **{**asked, **changes})


def _finish(service: TuningService, folder: Path, job: Job) -> Version:
    version = wait_for(service, job, JobStatus.SUCCEEDED).version
    return open_registry(folder).resolve(str(version))


def _whole(folder: Path, **changes: object) -> tuple[Version, list[tuple[int, int, float]]]:
    """The result of a job that is not interrupted."""
    service = open_service(folder)
    service.start()
    job = service.create_job(_spec(service, **changes))
    version, figures = _finish(service, folder, job), curve(service, job)
    service.close()
    return version, figures


def _num_taught(service: TuningService, job: Job) -> int:
    return sum(event.message.startswith("The teacher") for event in all_events(service, job))


def test_a_teacher_that_never_ends_an_answer_in_the_room_it_has_teaches_nothing(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    service.start()
    job = service.create_job(_spec(service, labels=(), template="{input}\nA: {target}"))
    failed = wait_for(service, job, JobStatus.FAILED)
    assert failed.error is not None
    assert failed.error.param == "prompt"
    assert "longer than max_target_tokens" in failed.error.message
    service.close()


@pytest.mark.parametrize("changes", [{"template": "{input}\nA: {target}"}, {"labels": ()}])
def test_the_version_says_what_it_is_worth_and_so_does_the_last_event(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    service = open_service(tmp_path)
    service.start()
    job = service.create_job(_spec(service, **changes))
    version = _finish(service, tmp_path, job)
    worth = version.provenance["distillation"]
    assert version.provenance["method"] == "distillation"
    assert 0 <= worth["agreement_low"] <= worth["agreement"] <= worth["agreement_high"] <= 1
    assert worth["num_virtual_tokens"] == version.num_virtual_tokens == 2
    assert worth["num_tokens_saved"] == worth["num_teacher_tokens"] - 2 > 100
    assert worth["num_requests_to_break_even"] > 0
    last = all_events(service, job)[-1].message
    for words in (version.id, "decides as the teacher does", "saved in each request", "requests save"):
        assert words in last
    card = (tmp_path / "prompts/short" / str(version.number) / "README.md").read_text()
    assert "num_requests_to_break_even" in card
    assert service.jobs.get(job.id).trained_tokens > 0
    for checkpoint in service.checkpoints.of(job.id)[:-1]:
        assert open_registry(tmp_path).resolve(checkpoint.version).provenance["method"] == "distillation"
    service.close()


@pytest.mark.parametrize("num_slices", [3, 12, 24, 30, 60])
def test_a_server_that_stops_at_any_time_changes_nothing(tmp_path: Path, num_slices: int) -> None:
    """Of 180 inputs the teacher answers 64 in eight slices, then it can be saved; the student follows."""
    expected, figures = _whole(tmp_path / "whole")
    gate = Gate()
    service = open_service(tmp_path / "broken", gate)
    service.start()
    job = service.create_job(_spec(service))
    gate.allow(num_slices)
    wait_until(lambda: gate.num_slices >= num_slices or service.jobs.get(job.id).status.is_final)
    service.stop()
    gate.open()
    service.close()
    assert status_in(tmp_path / "broken", job) in (JobStatus.QUEUED, JobStatus.SUCCEEDED)
    again = open_service(tmp_path / "broken")
    again.start()
    version = _finish(again, tmp_path / "broken", job)
    assert version.digest == expected.digest
    assert curve(again, job) == figures
    worth, its_worth = (each.provenance["distillation"] for each in (version, expected))
    assert worth == its_worth
    again.close()


def status_in(folder: Path, job: Job) -> JobStatus:
    service = open_service(folder)
    status = service.jobs.get(job.id).status
    service.close()
    return status


def test_a_job_can_be_paused_and_cancelled_while_the_teacher_answers(tmp_path: Path) -> None:
    gate = Gate()
    service = open_service(tmp_path, gate)
    service.start()
    job, other = (service.create_job(_spec(service)) for _ in range(2))
    gate.allow(2)
    wait_until(lambda: gate.num_slices >= 2)
    service.give(job.id, Order.PAUSE)
    allow_until(gate, lambda: service.jobs.get(other.id).status is JobStatus.RUNNING)
    assert _num_taught(service, job) == 0
    service.give(other.id, Order.CANCEL)
    service.give(job.id, Order.RESUME)
    gate.open()
    assert _finish(service, tmp_path, job).provenance["distillation"]["num_virtual_tokens"] == 2
    assert service.jobs.get(other.id).status is JobStatus.CANCELLED
    service.close()


def test_files_are_taken_for_what_they_hold(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    labelled = service.files.add("likes.jsonl", DATA)
    assert service.create_job(_spec(service, training_file=labelled.id)).status is JobStatus.QUEUED
    with pytest.raises(InvalidInput) as refused:
        service.create_job(make_spec(service, training_file=_spec(service).training_file))
    assert (refused.value.param, "no examples" in refused.value.message) == ("training_file", True)
    with pytest.raises(InvalidInput, match="longer"):
        service.create_job(_spec(service, teacher_text="x" * 600))
    service.close()
