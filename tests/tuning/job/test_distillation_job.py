"""A job that shortens a written prompt: as durable as any other, in the teacher's half and in the student's."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.jobs.files import Purpose
from app.jobs.job import Job, JobStatus, Order
from app.registry.version import Version
from app.tuning.job.service import TuningService
from app.tuning.job.spec import JobSpec
from tests.support.tuning_jobs import (
    DATA,
    Gate,
    all_events,
    allow_until,
    curve,
    make_spec,
    open_registry,
    open_shop,
    wait_for,
    wait_until,
)

pytestmark = pytest.mark.slow

INPUTS = "\n".join(f"film {a}{b}{c}" for a in "abcd" for b in "efg" for c in "0123456789abcde").encode()
WRITTEN = "Say yes or no. zz is yes, qq is no. " * 4


def _spec(shop: TuningService, **changes: object) -> JobSpec:
    file = shop.files.add("films.txt", INPUTS, Purpose.INPUTS)
    asked = {"task": "short", "training_file": file.id, "labels": ("no", "yes"), "teacher_text": WRITTEN}
    return make_spec(shop, **{**asked, **changes})


def _finish(shop: TuningService, folder: Path, job: Job) -> Version:
    version = wait_for(shop, job, JobStatus.SUCCEEDED).version
    return open_registry(folder).resolve(str(version))


def _whole(folder: Path, **changes: object) -> tuple[Version, list[tuple[int, int, float]]]:
    """What a job comes to that is not interrupted."""
    shop = open_shop(folder)
    shop.start()
    job = shop.create_job(_spec(shop, **changes))
    version, figures = _finish(shop, folder, job), curve(shop, job)
    shop.close()
    return version, figures


def _num_taught(shop: TuningService, job: Job) -> int:
    return sum(event.message.startswith("The teacher") for event in all_events(shop, job))


def test_a_teacher_that_never_ends_an_answer_in_the_room_it_has_teaches_nothing(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    shop.start()
    job = shop.create_job(_spec(shop, labels=(), template="{input}\nA: {target}"))
    failed = wait_for(shop, job, JobStatus.FAILED)
    assert failed.error is not None
    assert failed.error.param == "prompt"
    assert "longer than max_target_tokens" in failed.error.message
    shop.close()


@pytest.mark.parametrize("changes", [{"template": "{input}\nA: {target}"}, {"labels": ()}])
def test_the_version_says_what_it_is_worth_and_so_does_the_last_event(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    shop = open_shop(tmp_path)
    shop.start()
    job = shop.create_job(_spec(shop, **changes))
    version = _finish(shop, tmp_path, job)
    worth = version.provenance["distillation"]
    assert version.provenance["method"] == "distillation"
    assert 0 <= worth["agreement_low"] <= worth["agreement"] <= worth["agreement_high"] <= 1
    assert worth["num_virtual_tokens"] == version.num_virtual_tokens == 2
    assert worth["num_tokens_saved"] == worth["num_teacher_tokens"] - 2 > 100
    assert worth["num_requests_to_break_even"] > 0
    last = all_events(shop, job)[-1].message
    for words in (version.id, "decides as the teacher does", "saved in each request", "requests save"):
        assert words in last
    card = (tmp_path / "prompts/short" / str(version.number) / "README.md").read_text()
    assert "num_requests_to_break_even" in card
    assert shop.jobs.get(job.id).trained_tokens > 0
    for checkpoint in shop.checkpoints.of(job.id)[:-1]:
        assert open_registry(tmp_path).resolve(checkpoint.version).provenance["method"] == "distillation"
    shop.close()


@pytest.mark.parametrize("num_slices", [3, 12, 24, 30, 60])
def test_a_server_that_stops_at_any_time_changes_nothing(tmp_path: Path, num_slices: int) -> None:
    """Of 180 inputs the teacher answers 64 in eight slices, then it can be saved; the student follows."""
    expected, figures = _whole(tmp_path / "whole")
    gate = Gate()
    shop = open_shop(tmp_path / "broken", gate)
    shop.start()
    job = shop.create_job(_spec(shop))
    gate.allow(num_slices)
    wait_until(lambda: gate.num_slices >= num_slices or shop.jobs.get(job.id).status.is_final)
    shop.stop()
    gate.open()
    shop.close()
    assert shop_status(tmp_path / "broken", job) in (JobStatus.QUEUED, JobStatus.SUCCEEDED)
    again = open_shop(tmp_path / "broken")
    again.start()
    version = _finish(again, tmp_path / "broken", job)
    assert version.digest == expected.digest
    assert curve(again, job) == figures
    worth, its_worth = (each.provenance["distillation"] for each in (version, expected))
    assert worth == its_worth
    again.close()


def shop_status(folder: Path, job: Job) -> JobStatus:
    shop = open_shop(folder)
    status = shop.jobs.get(job.id).status
    shop.close()
    return status


def test_a_job_can_be_paused_and_cancelled_while_the_teacher_answers(tmp_path: Path) -> None:
    gate = Gate()
    shop = open_shop(tmp_path, gate)
    shop.start()
    job, other = (shop.create_job(_spec(shop)) for _ in range(2))
    gate.allow(2)
    wait_until(lambda: gate.num_slices >= 2)
    shop.give(job.id, Order.PAUSE)
    allow_until(gate, lambda: shop.jobs.get(other.id).status is JobStatus.RUNNING)
    assert _num_taught(shop, job) == 0
    shop.give(other.id, Order.CANCEL)
    shop.give(job.id, Order.RESUME)
    gate.open()
    assert _finish(shop, tmp_path, job).provenance["distillation"]["num_virtual_tokens"] == 2
    assert shop.jobs.get(other.id).status is JobStatus.CANCELLED
    shop.close()


def test_files_are_taken_for_what_they_hold(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    labelled = shop.files.add("likes.jsonl", DATA)
    assert shop.create_job(_spec(shop, training_file=labelled.id)).status is JobStatus.QUEUED
    with pytest.raises(InvalidInput) as refused:
        shop.create_job(make_spec(shop, training_file=_spec(shop).training_file))
    assert (refused.value.param, "no examples" in refused.value.message) == ("training_file", True)
    with pytest.raises(InvalidInput, match="longer"):
        shop.create_job(_spec(shop, teacher_text="x" * 600))
    shop.close()
