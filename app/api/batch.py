"""Many coroutines of one request: all of them, or the first error and none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import closing, nullcontext
from typing import Any, TypeVar

Result = TypeVar("Result")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, Result]], *, at_once: int | None = None) -> list[Result]:
    """Results in order. The first error, or being cancelled, ends the others before it is passed on.

    Args:
        at_once: how many run at a time; None lets all.
    """
    slots = nullcontext() if at_once is None else asyncio.Semaphore(at_once)

    async def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
        with closing(coroutine):
            async with slots:
                return await coroutine

    tasks = [asyncio.ensure_future(run(coroutine)) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
