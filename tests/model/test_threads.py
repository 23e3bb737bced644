"""As many threads as the process may keep busy, and as are worth it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch

from app.model.threads import ThreadsByLoad, choose_num_threads, physical_cores, read_cpu_times, usable_cores

CPUS = {0, 1, 2, 3, 4, 5, 6, 7}


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: CPUS, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def siblings(root: Path, *, threads_per_core: int) -> None:
    for cpu in CPUS:
        first = cpu // threads_per_core * threads_per_core
        text = f"{first}-{first + threads_per_core - 1}\n"
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", text)


def test_without_a_quota_all_of_the_affinity_may_be_used(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    assert usable_cores(tmp_path) == 8
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("250000 100000", 3), ("10000 100000", 1), ("9900000 100000", 8)]
)
def test_a_quota_is_rounded_up(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", f"{quota}\n")
    assert usable_cores(tmp_path) == cores


def test_the_least_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/kubepods/pod7/c9\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod7/c9/cpu.max", "600000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod7/cpu.max", "300000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/cpu.max", "max 100000\n")
    assert usable_cores(tmp_path) == 3


def test_a_path_that_leaves_the_container_ends_at_its_top(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/../../elsewhere\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "400000 100000\n")
    assert usable_cores(tmp_path) == 4


def test_version_1_of_cgroups_has_its_quota_in_two_files(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "5:memory:/box\n3:cpu,cpuacct:/box\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "150000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert usable_cores(tmp_path) == 2
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize("threads_per_core", [1, 2, 4])
def test_cores_are_counted_by_who_shares_them(tmp_path: Path, threads_per_core: int) -> None:
    assert physical_cores(tmp_path) is None
    siblings(tmp_path, threads_per_core=threads_per_core)
    assert physical_cores(tmp_path) == 8 // threads_per_core


def pretend(seconds: dict[int, float]) -> tuple[object, list[int]]:
    """Work that takes a given time with each number of threads, and the numbers it was done with."""
    done: list[int] = []

    def work() -> None:
        done.append(torch.get_num_threads())
        time.sleep(seconds[done[-1]])

    return work, done


@pytest.mark.parametrize(("with_all_s", "chosen"), [(0.01, 8), (0.02, 4), (0.03, 4)])
def test_two_threads_of_a_core_are_measured(tmp_path: Path, with_all_s: float, chosen: int) -> None:
    siblings(tmp_path, threads_per_core=2)
    work, done = pretend({8: with_all_s, 4: 0.02})
    found, reason = choose_num_threads(work, tmp_path)  # type: ignore[arg-type]
    assert found == chosen
    assert "times as fast" in reason
    assert done == [4, 8] * (len(done) // 2)


def test_nothing_is_measured_where_there_is_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, done = pretend({})
    siblings(tmp_path, threads_per_core=1)
    assert choose_num_threads(work, tmp_path)[0] == 8  # type: ignore[arg-type]
    siblings(tmp_path, threads_per_core=2)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "300000 100000\n")
    assert choose_num_threads(work, tmp_path)[0] == 3  # type: ignore[arg-type]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torch.set_num_threads(5)
    assert choose_num_threads(work, tmp_path) == (5, "OMP_NUM_THREADS")  # type: ignore[arg-type]
    assert not done


def test_threads_begun_later_compute_with_the_number_that_was_set() -> None:
    torch.set_num_threads(3)
    seen: list[int] = []
    thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3]


def reads(*times: tuple[float, float, float]) -> Callable[[], tuple[float, float, float]]:
    """One after the other."""
    left = iter(times)
    return lambda: next(left)


@pytest.mark.parametrize(
    ("num_threads", "busy_s", "own_s", "chosen"),
    [
        (8, 8.0, 8.0, 8),  # alone, and busy itself
        (8, 8.25, 8.0, 8),  # little else
        (8, 8.0, 7.0, 7),
        (8, 8.0, 2.5, 2),
        (8, 8.0, 0.0, 1),  # others take all
        (2, 8.0, 3.0, 2),  # of which enough are left for its own
        (1, 8.0, 0.0, 1),
        (8, 7.0, 8.0, 8),  # clocks do not agree to the last tick
    ],
)
def test_threads_are_left_to_other_programs(num_threads: int, busy_s: float, own_s: float, chosen: int) -> None:
    threads = ThreadsByLoad(num_threads, reads((10.0, 100.0, 50.0), (11.0, 100.0 + busy_s, 50.0 + own_s)))
    assert threads.choose() == chosen


def test_threads_come_back_when_the_others_are_gone_and_short_looks_decide_nothing() -> None:
    threads = ThreadsByLoad(8, reads((0, 0, 0), (1, 8, 1), (1.1, 8.1, 1.1), (2, 15, 2), (3, 23, 10)))
    assert [threads.choose() for _ in range(4)] == [1, 1, 2, 8]


def test_the_number_holds_within_and_not_after() -> None:
    torch.set_num_threads(4)
    threads = ThreadsByLoad(4, reads((0, 0, 0), (1, 8, 1)))
    with threads.in_use():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


def test_cpu_times_are_those_of_the_cores_that_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    lines = [
        "cpu 9 9 9 9 9 9 9 9",
        "cpu0 100 10 50 7777 88 1 2 37 0 0",
        "cpu1 9 9 9 9 9 9 9 9",
        "cpu2 100 0 0 1 1 0 0 0",
    ]
    write(tmp_path, "proc/stat", "\n".join([*lines, "intr 1 2 3"]))
    _, busy_s, _ = read_cpu_times(tmp_path)
    assert busy_s == pytest.approx(3.0)


def test_where_nothing_is_said_of_the_cores_no_other_program_seems_to_compute(tmp_path: Path) -> None:
    _, busy_s, own_s = read_cpu_times(tmp_path)
    assert busy_s == own_s
