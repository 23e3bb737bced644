"""Threads that end with their work, so that the engine's thread is the only one with OpenMP threads of its own.

Every thread that computes something in parallel gets a team of OpenMP threads for as long as it lives. If all teams
together have more threads than the machine has cores, libgomp lets them sleep almost at once instead of spinning
between two parallel regions (`gomp_throttled_spin_count`), and each of a step's hundreds of regions may have to wake
them up. The team ends with the thread that has it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")

MAX_THREADS = 8


def on_passing_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, computed by a thread of its own that is gone when this returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def begin_on_passing_thread(work: Callable[[], Result]) -> Future[Result]:
    """Begin `work` on a thread of its own, which ends with it. Waits for nothing."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="passing")
    outcome = pool.submit(work)
    pool.shutdown(wait=False)
    return outcome


class PassingThreads(ThreadPoolExecutor):
    """An executor whose calls each have a thread of their own; at most MAX_THREADS run at a time.

    Its own threads only wait. asyncio takes nothing but a ThreadPoolExecutor as a loop's default.
    """

    def __init__(self) -> None:
        super().__init__(MAX_THREADS, thread_name_prefix="passing")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(on_passing_thread, partial(fn, *args, **kwargs))
