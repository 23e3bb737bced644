"""PeakMemory: how much memory a block of work needs beyond what was in use before it."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Clears the high-water mark of the resident set, see proc_pid_clear_refs(5)."""


class PeakMemory:
    """A `with` block's peak. On CPU it counts the whole process, so nothing else may run in it.

    Attributes:
        num_bytes: peak less what was in use at entry; None if the system does not say.
        measure: how it was measured, for a reader.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.num_bytes: int | None = None
        if device.type == "cuda":
            self.measure = "torch.cuda.max_memory_allocated, less what was allocated before"
        elif _can_reset_peak():
            self.measure = "peak resident set of a process of its own (VmHWM), less its resident set before"
        else:
            self.measure = "not measured: this system does not say"

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif _can_reset_peak():
            CLEAR_REFS.write_text(RESET_PEAK)
            self._before = _read_status("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        elif _can_reset_peak():
            self.num_bytes = max(0, _read_status("VmHWM") - self._before)


def _can_reset_peak() -> bool:
    return os.access(CLEAR_REFS, os.W_OK)


def _read_status(name: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
