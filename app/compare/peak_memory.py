"""PeakMemory: how much memory a block of work needs beyond what was in use before it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CUDA_MEASURE = "torch.cuda.max_memory_allocated, less what was allocated before"
CPU_MEASURE = "peak resident set of a process of its own (VmHWM), less its resident set before"
RESET_PEAK = "5"
"""Clears the high-water mark of the resident set, see proc_pid_clear_refs(5)."""


class PeakMemory:
    """A `with` block's peak. On CPU it counts the whole process, so nothing else may run in it.

    Attributes:
        num_bytes: peak less what was in use at entry; None if the system does not say.
        measure: how it was measured, for a reader.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._can_measure = self._is_cuda or os.access(CLEAR_REFS, os.W_OK)
        self._device = device
        self._before = 0
        self.num_bytes: int | None = None
        self.measure = "not measured: this system does not say"
        if self._can_measure:
            self.measure = CUDA_MEASURE if self._is_cuda else CPU_MEASURE

    def __enter__(self) -> PeakMemory:
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self._can_measure:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._before = _read_status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_cuda:
            self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        elif self._can_measure:
            self.num_bytes = max(0, _read_status("VmHWM") - self._before)


def _read_status(name: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
