"""Many coroutines at once, at most a given number of them at a time: all results, or the first error and none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

Result = TypeVar("Result")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, Result]], *, at_once: int | None = None) -> list[Result]:
    """Results in order. The first error, or a cancellation, ends the others before it is passed on.

    Args:
        at_once: how many run at a time; None lets all of them run.
    """
    waiting = list(coroutines)
    if len(waiting) == 1:
        return [await waiting[0]]
    slots = nullcontext() if at_once is None else asyncio.Semaphore(at_once)

    async def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
        async with slots:
            return await coroutine

    tasks = [asyncio.ensure_future(run(coroutine)) for coroutine in waiting]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        for coroutine in waiting:
            coroutine.close()  # one that was never begun would warn that it was not awaited
