"""A job killed at any moment continues and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
NUM_KILLS = int(os.environ.get("JOB_KILLS", "6"))
MAX_KILLS_A_JOB = 3


class Driver:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def live(self, folder: Path, kill_after_s: float | None = None) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"folder": str(folder), "kill_after_s": kill_after_s}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.job_crash_driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert json.loads(process.stdout.readline())["is_ready"]
    yield Driver(process)
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.mark.timeout(60 + 30 * NUM_KILLS)
def test_a_killed_job_ends_as_one_that_was_left_alone(driver: Driver, tmp_path: Path) -> None:
    whole = driver.live(tmp_path / "whole")
    assert (whole["status"], whole["job"]["status"]) == (0, "succeeded")
    rng = random.Random(int(os.environ.get("JOB_KILLS_SEED", "0")))
    num_kills, num_jobs, num_resumed = 0, 0, 0
    while num_kills < NUM_KILLS:
        num_jobs += 1
        folder = tmp_path / str(num_jobs)
        last = _live_through(driver, folder, rng, min(NUM_KILLS - num_kills, MAX_KILLS_A_JOB), whole["seconds"])
        num_kills += last["num_kills"]
        num_resumed += last["job"]["num_runs"] > 1
        _require_equal(last, whole)
    print(f"{num_kills} kills in {num_jobs} jobs, {num_resumed} resumed, {whole['seconds']:.2f} s each")
    assert num_resumed > 0


def _live_through(driver: Driver, folder: Path, rng: random.Random, max_kills: int, whole_s: float) -> dict[str, Any]:
    """Kill the folder's job at random moments, then let it finish."""
    num_kills = 0
    life: dict[str, Any] = {}
    while num_kills < max_kills and "job" not in life:
        life = driver.live(folder, rng.uniform(0.0, whole_s))
        num_kills += 1
        assert life["status"] in (-9, 0)
        assert life.get("left_running", []) == []
    if "job" not in life:
        life = driver.live(folder)
        assert life["left_running"] == []
    return {**life, "num_kills": num_kills}


def _require_equal(life: dict[str, Any], whole: dict[str, Any]) -> None:
    killed, expected = life["job"], whole["job"]
    assert killed["status"] == "succeeded"
    assert [place[:2] for place in killed["curve"]] == [place[:2] for place in expected["curve"]]
    assert [place[2] for place in killed["curve"]] == pytest.approx([place[2] for place in expected["curve"]], abs=1e-6)
    assert killed["checkpoints"] == expected["checkpoints"]
    assert (killed["digests"], killed["result"]) == (expected["digests"], expected["result"])
    assert killed["num_versions"] == expected["num_versions"]
    assert killed["leftovers"] == []
    assert life["weights"] == whole["weights"]
    assert len(set(life["weights"])) == 1
