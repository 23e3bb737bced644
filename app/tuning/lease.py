"""Lease: how tuning gets at a device that others use too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from app.tuning.slices import Slices

Result = TypeVar("Result")


class Lease(Protocol):
    """Calls work on the device's own thread, in turn; the caller waits for what it returns or raises."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def own_device(work: Callable[[], Result]) -> Result:
    """The lease of a program that has the device to itself."""
    return work()


def take_turns(lease: Lease, slices: Slices[Result]) -> Result:
    """What the work returns; each of its slices is a turn of its own."""
    ends: list[StopIteration] = []

    def resume() -> None:
        try:
            next(slices)
        except StopIteration as end:
            ends.append(end)

    while not ends:
        lease(resume)
    result: Result = ends[0].value
    return result
