"""A peak is what a block held at once, though it gave it back before its end."""

from __future__ import annotations

import sys

import pytest
import torch

from app.compare.cost import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux clears a process's high-water mark")
def test_a_peak_is_seen_after_it_is_over_and_forgotten_in_the_next_block() -> None:
    with PeakMemory(CPU) as large:
        torch.ones(2**26)
    with PeakMemory(CPU) as small:
        torch.ones(2**10)
    assert large.num_bytes is not None
    assert small.num_bytes is not None
    assert large.num_bytes > 0.8 * 2**28
    assert small.num_bytes < 2**26
    assert "resident set" in large.measure
