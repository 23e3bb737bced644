"""A guest gets the device when no request wants it, its share when some do, and nothing under load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from app.engine.admission import EngineRequest
from app.engine.async_engine import AsyncEngine
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.threads.device_lease import MAX_CREDIT_S, REST_S, DeviceLease
from app.engine.threads.engine_thread import EngineThread
from app.errors import Draining, EngineDead
from app.sampling import SamplingParams
from tests.support.models import tiny_backbone

PARAMS = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Guest:
    """Hands in work of a fixed length, again and again, from a thread of its own."""

    def __init__(self, lease: DeviceLease, clock: Clock, duration_s: float) -> None:
        self.num_turns = 0
        self._lease, self._clock, self._duration_s = lease, clock, duration_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._lease(self._work)
        except Draining:
            pass

    def _work(self) -> None:
        self.num_turns += 1
        self._clock.now_s += self._duration_s

    def end(self) -> None:
        self._lease.close(Draining("over"))
        self._thread.join()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def give(lease: DeviceLease, *, is_idle: bool = False, is_loaded: bool = False) -> float:
    while not lease.has_turns:  # the guest's thread comes back by itself
        pass
    return lease.give_turn(is_idle=is_idle, is_loaded=is_loaded)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_with_running_sequences_turns_take_the_share(share: float, clock: Clock) -> None:
    lease = DeviceLease(lambda: None, share=share, clock=clock)
    guest = Guest(lease, clock, duration_s=0.02)
    served_s = lent_s = 0.0
    for _ in range(2000):
        lease.note_step(0.005)
        served_s += 0.005
        lent_s += give(lease)
    guest.end()
    assert lent_s / (served_s + lent_s) == pytest.approx(share, rel=0.05)


def test_an_idle_device_is_the_guests_and_a_loaded_one_is_not(clock: Clock) -> None:
    lease = DeviceLease(lambda: None, share=0.2, clock=clock)
    guest = Guest(lease, clock, duration_s=0.02)
    for _ in range(10):
        assert give(lease, is_idle=True) == pytest.approx(0.02)
        lease.note_step(1.0)
        assert give(lease, is_loaded=True) == 0.0
        clock.now_s += REST_S
    assert guest.num_turns == 10
    guest.end()


def test_a_moment_without_load_is_not_the_end_of_it(clock: Clock) -> None:
    """Clients that ask again as soon as they are answered leave the device idle for a moment."""
    lease = DeviceLease(lambda: None, share=0.2, clock=clock)
    guest = Guest(lease, clock, duration_s=0.02)
    assert give(lease, is_loaded=True) == 0.0
    clock.now_s += REST_S / 2
    lease.note_step(1.0)
    assert give(lease, is_idle=True) == give(lease) == 0.0
    assert lease.rest_s == pytest.approx(REST_S / 2)
    clock.now_s += REST_S / 2
    assert give(lease) == pytest.approx(0.02)
    guest.end()


def test_a_long_pause_saves_up_no_burst(clock: Clock) -> None:
    lease = DeviceLease(lambda: None, share=0.5, clock=clock)
    guest = Guest(lease, clock, duration_s=0.02)
    lease.note_step(1000.0)
    turns = 0
    while give(lease):
        turns += 1
    assert turns <= MAX_CREDIT_S / 0.02 + 1
    guest.end()


def test_what_work_raises_is_raised_where_it_was_handed_in(clock: Clock) -> None:
    lease = DeviceLease(lambda: None, share=0.2, clock=clock)
    caught: list[BaseException] = []

    def hand_in() -> None:
        try:
            lease(lambda: 1 // 0)
        except ZeroDivisionError as error:
            caught.append(error)

    thread = threading.Thread(target=hand_in)
    thread.start()
    give(lease, is_idle=True)
    thread.join()
    assert len(caught) == 1


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    backbone = tiny_backbone()
    engine = AsyncEngine(Engine(backbone, EngineConfig.sized_for(backbone, max_num_seqs=4)))
    engine.start()
    yield engine
    engine.close()


def test_work_runs_on_the_engines_thread_between_steps_of_sequences_that_all_end(engine: AsyncEngine) -> None:
    names: list[str] = []

    def work() -> int:
        names.append(threading.current_thread().name)
        return 7

    async def serve() -> list[int]:
        async def one(start: int) -> int:
            deltas = [delta async for delta in engine.generate(EngineRequest(token_ids=[0, start], params=PARAMS))]
            return sum(len(delta.token_ids) for delta in deltas)

        return await asyncio.gather(*(one(start) for start in range(3, 13)))

    stop = threading.Event()
    results: list[int] = []

    def tune() -> None:
        while not stop.is_set():
            results.append(engine.lease(work))

    guest = threading.Thread(target=tune)
    guest.start()
    assert asyncio.run(serve()) == [20] * 10
    stop.set()
    guest.join()
    assert set(results) == {7}
    assert set(names) == {"engine"}


def test_who_came_during_a_step_is_looked_at_before_a_guest() -> None:
    backbone = tiny_backbone()
    config = EngineConfig.sized_for(backbone, max_num_seqs=4, tuning_share=0.2)
    engine = Engine(backbone, config)
    idle = EngineThread(engine)  # this one takes its place
    engine.add([0, 5], params=PARAMS)
    guest = threading.Thread(target=lambda: idle.lease(lambda: None))
    guest.start()
    while not idle.num_commands:
        pass
    engine.step()
    idle.lease.note_step(1.0)
    idle.give_turn()  # the command that announced the guest is not taken yet, as a request's would not be
    assert idle.lease.has_turns
    idle.take_commands()
    idle.give_turn()
    assert not idle.lease.has_turns
    guest.join()


def test_a_closed_engine_lends_nothing(engine: AsyncEngine) -> None:
    engine.close()
    with pytest.raises(Draining):
        engine.lease(lambda: None)


def test_a_guest_of_an_engine_that_dies_is_told_so(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: bool) -> float:
        raise RuntimeError("the thread is to end")

    monkeypatch.setattr(engine.lease, "give_turn", fail)
    with pytest.raises(EngineDead):
        engine.lease(lambda: None)
