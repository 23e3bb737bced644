"""What a figure was measured on, and what else ran there meanwhile."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "peft")


def describe_machine() -> dict[str, object]:
    """The facts a reader needs before comparing a figure with his own.

    `num_cores` are those this process may use, `num_threads` those torch computes with.
    """
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    return {
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | versions,
    }


class Stopwatch:
    """Wall time of a `with` block, and how many cores other processes kept busy during it.

    Attributes:
        wall_s: seconds between entry and exit.
        cpu_s: seconds of all this process's threads. With one thread it stands for wall time on an idle machine; with
            several it counts waiting, because OpenMP's threads wait by spinning.
        foreign_cores: busy time of all cores less this process's own, over wall time; None without /proc/stat. It
            slows OpenMP by far more than its share, so a figure with much of it is not to be trusted.
    """

    wall_s = cpu_s = 0.0
    foreign_cores: float | None = None

    def __enter__(self) -> Stopwatch:
        self._foreign_started_s = _foreign_cpu_s()
        self._cpu_started_s = time.process_time()
        self._started_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.perf_counter() - self._started_s
        self.cpu_s = time.process_time() - self._cpu_started_s
        foreign_s = _foreign_cpu_s()
        if foreign_s is not None and self._foreign_started_s is not None:
            self.foreign_cores = max(0.0, foreign_s - self._foreign_started_s) / self.wall_s

    def foreign_cores_without(self, elsewhere_s: float) -> float | None:
        """Args: elsewhere_s: CPU seconds of processes that belong to the measurement too."""
        return None if self.foreign_cores is None else max(0.0, self.foreign_cores - elsewhere_s / self.wall_s)


@dataclass(frozen=True)
class Device:
    """Where a model is computed, and what that can do at best (the roofline model, Williams et al. 2009).

    Attributes:
        dtype: what models are measured in.
        is_rehearsal: its rates are measured in a moment, and mean nothing.
    """

    place: torch.device
    dtype: torch.dtype
    is_rehearsal: bool = False

    def settle(self) -> None:
        """Wait until all its work is done."""
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)

    def forget(self) -> None:
        """Give unused memory back; an engine and its graphs hold each other."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], num_rounds: int = 6) -> float:
        """The median over the rounds, host and device together; one round more warms up."""
        found = []
        for _ in range(1 + num_rounds):
            self.settle()
            began_s = time.perf_counter()
            work()
            self.settle()
            found.append(time.perf_counter() - began_s)
        return statistics.median(found[1:])

    @cached_property
    def bytes_per_s(self) -> float:
        """The faster of reading a tensor that no cache holds (a sum) and of reading and writing one (a copy)."""
        num_bytes = 2**22 if self.is_rehearsal else 2**32 if self.place.type == "cuda" else 2**29
        source = torch.randn(num_bytes // 4, device=self.place)
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / self.seconds(lambda: target.copy_(source))
        return max(copied, source.nbytes / self.seconds(source.sum))

    @cached_property
    def flops_per_s(self) -> float:
        """Of a product of square matrices of random numbers; on zeros a device can be faster."""
        size = 128 if self.is_rehearsal else 8192 if self.place.type == "cuda" else 2048
        one, other = (torch.randn(size, size, device=self.place).to(self.dtype) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: one @ other)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _foreign_cpu_s() -> float | None:
    """Busy seconds of all cores since boot, less those of this process (fields as in proc_stat(5))."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system
