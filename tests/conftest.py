"""One thread for each test process by default: the models are tiny, and teams of threads on two cores mostly wait.

Tests of threads choose the number themselves. No test takes the default model, which may have to be pulled.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, also by processes that tests start
os.environ.setdefault("SOFTSWAP_MODEL", "demo")
if not Path("/dev/nvidia0").exists():  # without a GPU, Triton's kernels are interpreted; read when a kernel is made
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left waiting for another at the end.

    Tests to run by hand are left out unless `-m` names them.
    """
    if "by_hand" not in config.option.markexpr:
        by_hand = [item for item in items if item.get_closest_marker("by_hand")]
        config.hook.pytest_deselected(items=by_hand)
        items[:] = [item for item in items if item not in by_hand]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
