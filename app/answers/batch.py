"""Many coroutines of one request: all of them, or the first error and none."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from app.engine.gather import all_of
from app.errors import DeadlineExceeded

if TYPE_CHECKING:
    from app.engine.async_engine import AsyncEngine

QUEUED_BATCHES = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


def max_at_once(engine: AsyncEngine, num_sequences: int = 1) -> int:
    """How many answers of one call are with the engine at a time, each of so many sequences there.

    Enough to keep it busy; and never more than half of its queue, or a call could be refused for its own size.
    """
    config = engine.config
    return max(1, min(QUEUED_BATCHES * config.max_num_seqs, config.max_waiting_requests // 2) // num_sequences)


async def ask_each(
    items: Iterable[Item],
    ask: Callable[[Item, float], Coroutine[Any, Any, Result]],
    deadline_s: float,
    *,
    at_once: int,
) -> list[Result]:
    """`ask` of every item, given the seconds that are left of all; the first error ends the others."""
    ends_at = time.monotonic() + deadline_s

    async def answer(item: Item) -> Result:
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before every input was answered")
        return await ask(item, left_s)

    return await all_of((answer(item) for item in items), at_once=at_once)
