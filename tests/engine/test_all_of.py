"""Many coroutines at once: all results, or the first error and none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from app.engine.async_engine import all_of


class Watch:
    """Counts coroutines that began, run and were cancelled."""

    def __init__(self) -> None:
        self.num_running = self.max_running = self.num_cancelled = self.num_begun = 0

    async def work(self, result: int, seconds: float = 0.001) -> int:
        self.num_begun += 1
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        return result

    async def fail(self) -> int:
        await asyncio.sleep(0.001)
        raise ValueError("one of them failed")


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=20))


@pytest.mark.parametrize("at_once", [None, 1, 3, 100])
def test_results_are_in_order_and_no_more_run_than_may(at_once: int | None) -> None:
    async def check() -> None:
        watch = Watch()
        found = await all_of((watch.work(k, 0.002 * (k % 3)) for k in range(10)), at_once=at_once)
        assert found == list(range(10))
        assert watch.max_running == min(10, at_once or 10)

    run(check)


def test_none_and_one_are_gathered_too() -> None:
    async def check() -> None:
        assert await all_of([]) == []
        assert await all_of([Watch().work(7)], at_once=3) == [7]
        with pytest.raises(ValueError, match="one of them"):
            await all_of([Watch().fail()])

    run(check)


@pytest.mark.filterwarnings("error")
def test_the_first_error_ends_the_others_and_begins_no_more() -> None:
    async def check() -> None:
        watch = Watch()
        with pytest.raises(ValueError, match="one of them"):
            await all_of([watch.work(1, 10), watch.fail(), *(watch.work(k, 10) for k in range(5))], at_once=2)
        assert (watch.num_running, watch.num_begun) == (0, watch.num_cancelled)
        assert watch.num_begun <= 2

    run(check)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("waits_s", [0, 0.01], ids=["before they begin", "while they run"])
def test_a_cancellation_ends_all_of_them(waits_s: float) -> None:
    async def check() -> None:
        watch = Watch()
        gathering = asyncio.create_task(all_of((watch.work(k, 10) for k in range(6)), at_once=3))
        await asyncio.sleep(waits_s)
        gathering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathering
        assert watch.num_running == 0
        assert watch.num_cancelled == watch.num_begun

    run(check)
