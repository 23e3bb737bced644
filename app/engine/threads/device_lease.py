"""DeviceLease: turns on the engine's thread for work that is not serving.

One thread computes everything: a second one would fight with the first for the cores (OpenMP's barriers spin), or for
the GPU's queue. A guest hands in a bounded piece of work, waits, and gets what it returned or raised; longer work is
cut into slices.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from app.errors import SoftswapError

Result = TypeVar("Result")
Slices = Generator[None, None, Result]
"""Work that stops after each forward, and returns its result when it is resumed to its end."""

MAX_CREDIT_S = 0.02
"""Time a guest may have saved up: after a pause it gets one turn, and not one after every step."""
REST_S = 0.5
"""How long load is remembered: clients that were all answered at the same moment are about to ask again."""


class Lease(Protocol):
    """Calls work on the device's own thread, in turn; the caller waits for what it returns or raises."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


class DeviceLease:
    """Guests call it from threads of their own; the engine's thread calls `note_step` and `give_turn`.

    An idle engine gives every turn at once. While sequences run, turns take `share` of the time on average; under load
    and for REST_S after it, none.

    Args:
        wake: wakes the engine's thread if it waits for something to do.
        share: of the device's time, 0 to below 1.
        clock: monotonic seconds; tests give their own.
    """

    def __init__(
        self, wake: Callable[[], None], *, share: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        assert 0 <= share < 1
        self._wake = wake
        self._ratio = share / (1 - share)
        self._clock = clock
        self._turns: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._credit_s = 0.0
        self._rests_until_s = -math.inf
        self._end: SoftswapError | None = None

    def __call__(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises, computed on the engine's thread. Raises Draining, EngineDead instead."""
        outcome: Future[Result] = Future()
        self._turns.append((work, outcome))
        if self._end is not None:
            self.close(self._end)
        self._wake()
        return outcome.result()

    @property
    def has_turns(self) -> bool:
        """Whether a guest waits."""
        return bool(self._turns)

    @property
    def rest_s(self) -> float:
        """Seconds until an idle device is lent again; 0 after a rest."""
        return max(0.0, self._rests_until_s - self._clock())

    def note_step(self, duration_s: float) -> None:
        """The engine computed for others that long."""
        self._credit_s = min(MAX_CREDIT_S, self._credit_s + duration_s * self._ratio)

    def give_turn(self, *, is_idle: bool, is_loaded: bool) -> float:
        """Do one piece of work, if one waits and its time has come. Returns the seconds it took.

        Args:
            is_idle: no sequence wants the device.
            is_loaded: more sequences want it than it can compute.
        """
        if is_loaded:
            self._rests_until_s = self._clock() + REST_S
        is_due = not self.rest_s and (is_idle or self._credit_s > 0)
        if not self._turns or not is_due:
            return 0.0
        work, outcome = self._turns.popleft()
        began_s = self._clock()
        try:
            outcome.set_result(work())
        except BaseException as error:  # the guest's failure is the guest's, whatever it is
            outcome.set_exception(error)
        took_s = self._clock() - began_s
        self._credit_s = 0.0 if is_idle else self._credit_s - took_s
        return took_s

    def close(self, error: SoftswapError) -> None:
        """Answer every guest with `error`, from now on."""
        self._end = error
        with suppress(IndexError):  # a guest that comes too late empties the same queue
            while True:
                self._turns.popleft()[1].set_exception(error)


def own_device(work: Callable[[], Result]) -> Result:
    """The lease of a program that has the device to itself."""
    return work()


def take_turns(lease: Lease, slices: Slices[Result]) -> Result:
    """What sliced work returns, each slice in a turn of its own."""
    results: list[Result] = []

    def advance() -> None:
        try:
            next(slices)
        except StopIteration as end:  # it must not leave: the lease's future would not carry it
            results.append(end.value)

    while not results:
        lease(advance)
    return results[0]


def run_to_end(slices: Slices[Result]) -> Result:
    """What sliced work returns, with the device to itself."""
    return take_turns(own_device, slices)
