"""Lease: how tuning uses a device that serves requests too, and work that is cut into slices for it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Slices = Generator[None, None, Result]
"""Work that stops after each forward, and returns its result when it is resumed to its end."""


class Lease(Protocol):
    """Calls work on the device's own thread, in turn; the caller waits for what it returns or raises."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def own_device(work: Callable[[], Result]) -> Result:
    """The lease of a program that has the device to itself."""
    return work()


def take_turns(lease: Lease, slices: Slices[Result]) -> Result:
    """What sliced work returns, each slice in a turn of its own."""
    results: list[Result] = []
    while not results:
        lease(lambda: _advance(slices, results))
    return results[0]


def run_to_end(slices: Slices[Result]) -> Result:
    """What sliced work returns, with the device to itself."""
    return take_turns(own_device, slices)


def _advance(slices: Slices[Result], results: list[Result]) -> None:
    """StopIteration must not leave: the lease's future would not carry it."""
    try:
        next(slices)
    except StopIteration as end:
        results.append(end.value)
