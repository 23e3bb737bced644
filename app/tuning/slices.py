"""Work on the device in slices: whoever shares the device may use it in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from app.tuning.lease import Lease, own_device

Result = TypeVar("Result")
Slices = Generator[None, None, Result]
"""Stops after each forward, and returns its result when it is resumed to its end."""


def run_to_end(slices: Slices[Result]) -> Result:
    """What the work returns, with the device to itself."""
    return run_with_lease(slices, own_device)


def run_with_lease(slices: Slices[Result], lease: Lease) -> Result:
    """What the work returns, each slice in its turn."""
    results: list[Result] = []
    while not results:
        lease(lambda: _advance(slices, results))
    return results[0]


def _advance(slices: Slices[Result], results: list[Result]) -> None:
    """StopIteration must not leave: a future would not carry it."""
    try:
        next(slices)
    except StopIteration as end:
        results.append(end.value)
