"""One thread for each process of the tests, unless told otherwise: their models are tiny, and many run at a time.

Teams of threads that share two cores mostly wait for one another. Tests of threads choose their number themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes tests start
if not Path("/dev/nvidia0").exists():  # without a GPU, Triton's kernels are interpreted; read when one is made
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no process waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
