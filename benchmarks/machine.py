"""What a figure was measured on, and what else ran there meanwhile."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import torch

PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Machine:
    """The facts a reader needs before comparing a figure with his own."""

    cpu: str
    num_cores: int
    num_threads: int
    memory_bytes: int
    instruction_set: str
    system: str
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        """The running one. `num_cores` are those this process may use, `num_threads` those torch computes with."""
        return cls(
            cpu=_cpu_model(),
            num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            num_threads=torch.get_num_threads(),
            memory_bytes=_memory_bytes(),
            instruction_set=torch.backends.cpu.get_cpu_capability(),
            system=f"{platform.system()} {platform.release()}",
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        )

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        memory_gib = self.memory_bytes / 2**30
        return (
            f"{self.cpu}, {self.num_cores} cores, {self.num_threads} threads, {self.instruction_set}, "
            f"{memory_gib:.0f} GiB, {self.system}; {versions}"
        )


@dataclass
class Stopwatch:
    """Wall time of a `with` block, and how many cores other processes kept busy during it.

    Attributes:
        wall_s: seconds between entry and exit.
        cpu_s: seconds of all this process's threads. With one thread it stands for wall time on an idle machine; with
            several it counts waiting, because OpenMP's threads wait by spinning.
        foreign_cores: busy time of all cores less this process's own, over wall time; None where /proc/stat is missing.
            A foreign load slows OpenMP by far more than its share, so a figure with much of it is not to be trusted.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    foreign_cores: float | None = None
    _started_s: float = field(default=0.0, repr=False)
    _cpu_started_s: float = field(default=0.0, repr=False)
    _foreign_started_s: float | None = field(default=None, repr=False)

    def __enter__(self) -> Stopwatch:
        self._foreign_started_s = _foreign_cpu_s()
        self._cpu_started_s = time.process_time()
        self._started_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = self.elapsed_s
        self.cpu_s = time.process_time() - self._cpu_started_s
        foreign_s = _foreign_cpu_s()
        if foreign_s is not None and self._foreign_started_s is not None:
            self.foreign_cores = max(0.0, foreign_s - self._foreign_started_s) / self.wall_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since entry."""
        return time.perf_counter() - self._started_s


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else 0


def _foreign_cpu_s() -> float | None:
    """Busy seconds of all cores since boot, less those of this process (fields as in proc_stat(5))."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy_s - own.user - own.system
