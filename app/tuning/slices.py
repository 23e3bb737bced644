"""Work on the device in slices: whoever shares the device may use it in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")
Slices = Generator[None, None, Result]
"""Stops after each forward, and returns its result when it is resumed to its end."""


def run_to_end(slices: Slices[Result]) -> Result:
    """What the work returns, with nobody else on the device."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: Result = end.value
            return result
