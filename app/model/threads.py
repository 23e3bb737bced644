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
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

Work = Callable[[], object]
Result = TypeVar("Result")

MAX_PASSING_THREADS = 8
MIN_LOOK_S = 0.5
TOLERATED_LOAD = 0.3
"""Cores that others may take without a thread being given up for them."""
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


class ThreadsByLoad:
    """How many threads a long computation should have while other programs compute: the cores these leave.

    OpenMP's threads wait for each other busily at every barrier. If one of them has lost its core, the others spin
    until it gets one again, hundreds of times in an update: next to other programs an update takes up to ten times as
    long with two threads on two cores as with one.

    Args:
        num_threads: of a quiet machine.
        read: see `read_cpu_times`; tests give their own.
    """

    def __init__(self, num_threads: int, read: Callable[[], tuple[float, float, float]] | None = None) -> None:
        self._num_threads = num_threads
        self._read = read or read_cpu_times
        self._before = self._read()
        self._chosen = num_threads

    def choose(self) -> int:
        """By what was computed since the last choice, if that is at least MIN_LOOK_S ago."""
        now_s, busy_s, own_s = self._read()
        then_s, busy_before_s, own_before_s = self._before
        passed_s = now_s - then_s
        if passed_s >= MIN_LOOK_S:
            self._before = (now_s, busy_s, own_s)
            others = max(0.0, (busy_s - busy_before_s) - (own_s - own_before_s)) / passed_s
            self._chosen = max(1, min(self._num_threads, math.floor(usable_cores() - others + TOLERATED_LOAD)))
        return self._chosen

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within, torch computes with the chosen number of threads."""
        chosen = self.choose()
        if chosen == self._num_threads:
            yield
            return
        torch.set_num_threads(chosen)
        try:
            yield
        finally:
            torch.set_num_threads(self._num_threads)


def by_load(slices: Generator[Any, None, Result]) -> Generator[Any, None, Result]:
    """The same slices, each computed by as many threads as other programs leave room for."""
    threads = ThreadsByLoad(torch.get_num_threads())
    while True:
        with threads.in_use():
            try:
                done = next(slices)
            except StopIteration as end:
                result: Result = end.value
                return result
        yield done


def read_cpu_times(root: Path = Path("/")) -> tuple[float, float, float]:
    """Seconds: by a steady clock, that the cores of this process's affinity were busy or taken away, and its own.

    Where the system does not say (not Linux) others never seem to compute.
    """
    own_s = time.process_time()
    if not hasattr(os, "sched_getaffinity"):
        return time.monotonic(), own_s, own_s
    lines = (line.split() for line in _read(root / "proc/stat").splitlines())
    name_to_ticks = {fields[0]: [int(each) for each in fields[1:9]] for fields in lines if fields[0].startswith("cpu")}
    cores = [name_to_ticks.get(f"cpu{core}") for core in os.sched_getaffinity(0)]
    if not all(cores):
        return time.monotonic(), own_s, own_s
    ticks = sum(sum(each) - each[3] - each[4] for each in cores if each)  # all but idle and waiting for a disk
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own_s


class PassingThreads(ThreadPoolExecutor):
    """An executor whose calls each have a thread of their own; at most MAX_PASSING_THREADS run at a time.

    Its own threads only wait. asyncio takes nothing but a ThreadPoolExecutor as a loop's default.
    """

    def __init__(self) -> None:
        super().__init__(MAX_PASSING_THREADS, thread_name_prefix="passing")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(on_passing_thread, partial(fn, *args, **kwargs))
