"""Lease: how tuning gets at a device that others use too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

Result = TypeVar("Result")


class Lease(Protocol):
    """Calls work on the device's own thread, in turn; the caller waits for what it returns or raises."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


def own_device(work: Callable[[], Result]) -> Result:
    """The lease of a program that has the device to itself."""
    return work()
