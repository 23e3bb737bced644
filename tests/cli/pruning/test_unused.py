"""Which versions nothing names."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli.pruning.unused import NamedByJobs, find_unused

OWN, OTHER = "a" * 64, "b" * 64
NO_JOBS = NamedByJobs.of([])


def version(number: int, *, backbone: str = OWN, **provenance: str) -> dict[str, Any]:
    stated = {"number": number, "id": f"mood@{number}", "task": "mood"}
    return {**stated, "backbone_fingerprint": backbone, "provenance": provenance}


def task(*versions: dict[str, Any], aliases: dict[str, Any], elsewhere: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"versions": list(versions), "backbones": [{"aliases": aliases}, {"aliases": elsewhere or {}}]}


def job(status: str, **changes: Any) -> dict[str, Any]:
    method = {"type": "supervised"}
    return {
        "id": "ftjob-1",
        "status": status,
        "fine_tuned_model": None,
        "task": "x",
        "model": "demo",
        "method": method,
    } | changes


def numbers(found: list[dict[str, Any]]) -> list[int]:
    return [each["number"] for each in found]


FIVE = [version(number) for number in range(1, 6)]


@pytest.mark.parametrize(
    ("aliases", "elsewhere", "unused"),
    [
        ({"live": 5}, {}, [1, 2, 3, 4]),
        ({"live": 5, "canary": 2}, {}, [1, 3, 4]),
        ({"live": {4: 0.9, 5: 0.1}}, {}, [1, 2, 3]),
        ({"live": {"4": 0.9, "5": 0.1}}, {}, [1, 2, 3]),
        ({"live": 5}, {"live": 1, "canary": {"2": 0.5, "3": 0.5}}, [4]),
        ({}, {}, [1, 2, 3, 4, 5]),
    ],
)
def test_what_an_alias_names_on_any_backbone_stays(
    aliases: dict[str, Any], elsewhere: dict[str, Any], unused: list[int]
) -> None:
    assert numbers(find_unused(task(*FIVE, aliases=aliases, elsewhere=elsewhere), NO_JOBS, num_kept=0)) == unused


def test_the_newest_of_each_backbone_stay_if_asked_and_count_whether_named_or_not() -> None:
    mixed = [version(number, backbone=OTHER if number in (2, 3) else OWN) for number in range(1, 7)]
    shown = task(*mixed, aliases={"live": 6})
    assert numbers(find_unused(shown, NO_JOBS, num_kept=1)) == [1, 2, 4, 5]
    assert numbers(find_unused(shown, NO_JOBS, num_kept=2)) == [1, 4]
    assert numbers(find_unused(shown, NO_JOBS, num_kept=9)) == []
    assert numbers(find_unused(shown, NO_JOBS, num_kept=0, backbones={OTHER})) == [2, 3]


def test_what_a_job_made_stays_until_the_job_is_forgotten() -> None:
    shown = task(*FIVE[:3], version(4, job="ftjob-1"), version(5, job="ftjob-9"), aliases={"live": 1})
    done = NamedByJobs.of([job("succeeded", fine_tuned_model="mood@2")])
    assert numbers(find_unused(shown, done, num_kept=0)) == [3, 5]
    assert numbers(find_unused(shown, NO_JOBS, num_kept=0)) == [2, 3, 4, 5]
    assert numbers(find_unused(shown, NamedByJobs.of(None), num_kept=0)) == [2, 3]


@pytest.mark.parametrize("status", ["queued", "running", "paused", "succeeded", "failed", "cancelled"])
@pytest.mark.parametrize(
    "said",
    [
        {"task": "mood"},
        {"model": "mood@2"},
        {"model": "mood"},
        {"method": {"type": "distillation", "distillation": {"teacher": "mood@canary"}}},
    ],
    ids=["writes to it", "continues from a version", "continues from what is live", "distills it"],
)
def test_a_task_that_an_unfinished_job_needs_is_left_alone(status: str, said: dict[str, Any]) -> None:
    shown = task(*FIVE, aliases={"live": 5})
    is_left_alone = status in ("queued", "running", "paused")
    found = find_unused(shown, NamedByJobs.of([job(status, **said)]), num_kept=0)
    assert numbers(found) == ([] if is_left_alone else [1, 2, 3, 4])
