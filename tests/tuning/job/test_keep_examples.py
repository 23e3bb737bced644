"""A job's examples stay with its task if it asks for that, and never otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.jobs.files import Purpose
from app.jobs.job import JobStatus
from app.measure.dataset import Example, split_examples, unpack_examples
from app.measure.example_file import read_dataset
from app.tuning.job.service import TuningService
from tests.support.prompts import memory_folder
from tests.support.tuning_jobs import DATA, make_spec, open_registry, open_service, wait_for


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture
def service(folder: Path) -> Iterator[TuningService]:
    opened = open_service(folder)
    yield opened
    opened.close()


def run(service: TuningService, **changes: object) -> None:
    service.start()
    wait_for(service, service.create_job(make_spec(service, **changes)), JobStatus.SUCCEEDED)


def test_every_version_of_a_job_that_asks_for_it_was_tuned_on_kept_examples(
    service: TuningService, folder: Path
) -> None:
    run(service, keep_examples=True)
    registry = open_registry(folder)
    versions = registry.versions("likes")
    train, held_out = split_examples(read_dataset(DATA).examples)
    assert len(versions) > 1
    for version in versions:
        kept = registry.examples(version)
        assert (unpack_examples(kept.train), unpack_examples(kept.validation)) == (train, held_out)
    assert len(list((folder / "prompts" / "likes" / "examples").iterdir())) == 1


def test_a_job_that_does_not_ask_keeps_nothing(service: TuningService, folder: Path) -> None:
    run(service)
    registry = open_registry(folder)
    assert [registry.examples(version) for version in registry.versions("likes")] == [None] * len(
        registry.versions("likes")
    )
    assert not (folder / "prompts" / "likes" / "examples").exists()


def test_of_a_distillation_the_teachers_answers_are_kept(service: TuningService, folder: Path) -> None:
    inputs = [f"input {number}" for number in range(40)]
    file = service.files.add("inputs.txt", "\n".join(inputs).encode(), Purpose.INPUTS)
    run(service, keep_examples=True, training_file=file.id, teacher_text="Say yes or no.", labels=("no", "yes"))
    registry = open_registry(folder)
    kept = registry.examples(registry.resolve("likes"))
    examples: list[Example] = unpack_examples(kept.train + kept.validation)
    assert sorted(example.input for example in examples) == sorted(inputs)
    assert {example.target for example in examples} <= {"no", "yes"}
