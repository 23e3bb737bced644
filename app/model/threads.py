"""Threads that compute on a CPU: how many there are, and which of them end with their work.

Torch takes a thread for every core it sees. In a container with a quota it sees the whole machine's, and threads that
wait for their turn hold up all others at every barrier; two threads of one core are often no faster than one.

Every thread that computes something in parallel gets a team of OpenMP threads for as long as it lives. If all teams
together have more threads than the machine has cores, libgomp lets them sleep almost at once instead of spinning
between two parallel regions (`gomp_throttled_spin_count`), and each of a step's hundreds of regions may have to wake
them up. So the engine's thread is the only one that keeps a team: others pass, and their teams end with them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

Work = Callable[[], object]
Result = TypeVar("Result")

MAX_PASSING_THREADS = 8
NUM_ROUNDS = 3
MIN_GAIN = 1.03
"""How many times as fast more threads must be to be worth their cores."""


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: those of its affinity, or its cgroup's quota, rounded up, if that is less.

    Args: root: the folder of `proc` and `sys`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def physical_cores(root: Path = Path("/")) -> int | None:
    """Cores of the hardware threads of this process's affinity; None if the system does not say (not Linux)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = root / "sys/devices/system/cpu"
    try:
        found = {(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in os.sched_getaffinity(0)}
    except OSError:
        return None
    return len(found)


def choose_num_threads(work: Work, root: Path = Path("/")) -> tuple[int, str]:
    """The number and why it is this one, for the log. Torch's own number of threads is changed while this measures.

    Args: work: something like what will be computed, some milliseconds long.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), "OMP_NUM_THREADS"
    usable = usable_cores(root)
    fewer = min(usable, physical_cores(root) or usable)
    if fewer == usable:
        return usable, "the cores that may be used"

    def work_with(num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        work()

    fewer_s, usable_s = best_seconds([partial(work_with, fewer), partial(work_with, usable)])
    ratio = fewer_s / usable_s
    if ratio >= MIN_GAIN:
        return usable, f"{ratio:.2f} times as fast as the {fewer} of one for each core"
    return fewer, f"one for each core; {usable} are {ratio:.2f} times as fast"


def best_seconds(works: Sequence[Work]) -> list[float]:
    """How long each takes: the best of some rounds in turns, after one that is not counted."""
    rounds = [[_seconds(work) for work in works] for _ in range(1 + NUM_ROUNDS)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _seconds(work: Work) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that the process's cgroup, and those it lies in, may take (cgroups version 2, then 1)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for folder in _upwards(root / "sys/fs/cgroup", path):
                quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
                yield from _cores(quota, period)
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup/cpu", path):
                yield from _cores(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(top: Path, path: str) -> Iterator[Path]:
    """From the cgroup's folder to the topmost; in a container the path may be one that only the host has."""
    folder = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    while folder != top:
        yield folder
        folder = folder.parent
    yield top


def _cores(quota: str, period: str) -> Iterator[float]:
    if quota.strip().isdigit() and period.strip().isdigit() and int(period):
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def on_passing_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, computed by a thread of its own that is gone when this returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def begin_on_passing_thread(work: Callable[[], Result]) -> Future[Result]:
    """Begin `work` on a thread of its own, which ends with it. Waits for nothing."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="passing")
    outcome = pool.submit(work)
    pool.shutdown(wait=False)
    return outcome


class PassingThreads(ThreadPoolExecutor):
    """An executor whose calls each have a thread of their own; at most MAX_PASSING_THREADS run at a time.

    Its own threads only wait. asyncio takes nothing but a ThreadPoolExecutor as a loop's default.
    """

    def __init__(self) -> None:
        super().__init__(MAX_PASSING_THREADS, thread_name_prefix="passing")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(on_passing_thread, partial(fn, *args, **kwargs))
