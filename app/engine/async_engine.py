"""AsyncEngine: an engine on a thread of its own, spoken to from event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from app.engine.admission import EngineRequest, Scoring, ScoringPlan
from app.engine.config import EngineStats
from app.engine.engine import Engine
from app.engine.output.output import Delta, PathScores
from app.engine.threads.engine_thread import IDLE_HEARTBEAT_S, EngineThread, Reader
from app.errors import Draining, Overloaded
from app.task_prompt import TaskPrompt

QUEUED_BATCHES = 4

Result = TypeVar("Result")


class AsyncEngine:
    """Call `start` once, then `generate` and `score` from any coroutine; `drain` and `close` at the end.

    Attributes:
        max_positions: positions that one sequence can fill, virtual tokens included.
        plan_scoring: what `score` takes; see `Admission`.
        wants_warm: whether `warm` would spare the first request with a prompt something; see `Warmer.wants`.
        lease: turns on the engine's thread for tuning.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._num_open = 0
        self.config = engine.config
        self.max_positions = engine.config.max_positions
        self.plan_scoring = engine.admission.plan_scoring
        self.wants_warm = engine.warmer.wants
        self.thread = EngineThread(engine)
        self.lease = self.thread.lease

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits; may change a moment later."""
        return not self._engine.has_unfinished

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the thread last came round; a long forward counts as silence."""
        return time.monotonic() - self.thread.heartbeat_s

    def num_scored_at_once(self, num_sequences: int) -> int:
        """How many of a plan's sequences are with the engine at a time: at most half a batch, and half the queue."""
        return max(1, min(num_sequences, self.config.max_num_seqs // 2, self.config.max_waiting_requests // 2))

    def num_at_once(self, num_sequences: int = 1) -> int:
        """How many answers of one call are with the engine at a time, if each takes `num_sequences` sequences.

        Enough to keep it busy, but never more than half of its queue, or a call could be refused for its own size.
        """
        config = self.config
        num_queued = min(QUEUED_BATCHES * config.max_num_seqs, config.max_waiting_requests // 2)
        return max(1, num_queued // num_sequences)

    def start(self) -> None:
        self.thread.start()

    async def generate(self, request: EngineRequest, *, deadline_s: float | None = None) -> AsyncGenerator[Delta, None]:
        """Generate after `[prompt][text]`; closing the iterator ends the sequence within a step.

        Args:
            deadline_s: seconds from now.

        Raises:
            InvalidInput, BackboneMismatch, Overloaded, Draining, EngineDead: before the first delta.
            DeadlineExceeded, NumericalError, EngineDead, Draining: instead of the rest; SoftswapError if a step of the
                engine failed.
        """
        self._require_open()
        admitted = self._engine.admission.admit(request)
        reader = Reader(partial(self._engine.submit, admitted, deadline_s=deadline_s))
        with self._following(reader):
            is_last = False
            while not is_last:
                delta = await reader.next()
                assert isinstance(delta, Delta)
                is_last = delta.finish_reason is not None
                yield delta

    async def score(self, text: EngineRequest, plan: ScoringPlan, *, deadline_s: float | None = None) -> Scoring:
        """log P(continuation | prompt, text) of each continuation of the plan.

        The text's keys and values are computed once for all. Raises what `generate` raises.
        """
        at_once = self.num_scored_at_once(plan.num_sequences)
        self._require_open(at_once)
        requests = self._engine.admission.admit_scoring(text, plan)
        ends_at = None if deadline_s is None else time.monotonic() + deadline_s
        paths = (self._score_path(each, ends_at, is_begun=i >= at_once) for i, each in enumerate(requests))
        found = await all_of(paths, at_once=at_once)
        return Scoring(
            plan.sum([path.logprobs for path in found], start=len(text.token_ids) - 1),
            min(path.num_cached_tokens for path in found),
        )

    def warm(self, prompt: TaskPrompt) -> bool:
        """Compute a prompt before any request asks for it. Blocks; not for coroutines.

        Returns: whether it is warm now; False if requests run, or others need its room.
        Raises NumericalError: its keys and values are not finite.
        """
        outcome: Future[bool] = Future()
        self.thread.call(self.thread.warm, prompt, outcome)
        while self.is_alive and not outcome.done():
            wait([outcome], timeout=IDLE_HEARTBEAT_S)
        return outcome.done() and outcome.result()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let the present ones end, and after `timeout_s` end what is left."""
        self.thread.is_draining = True
        deadline_s = time.monotonic() + timeout_s
        while self._num_open and self.is_alive and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        self.thread.call(self.thread.abort_all)
        while self.thread.has_readers and self.is_alive and time.monotonic() < deadline_s + 1.0:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the thread. What still runs is told that the server is stopping."""
        self.thread.close()
        self._engine.close()

    def _require_open(self, num_requests: int = 1) -> None:
        if self.thread.is_dead:
            raise self.thread.end_error()
        if self.thread.is_draining:
            raise Draining("the server is stopping")
        if self.thread.num_commands >= self.config.max_waiting_requests:
            raise Overloaded("the server's queue is full; try again later", retry_after_s=1.0)
        self._engine.require_queue_room(num_requests)

    async def _score_path(self, request: EngineRequest, ends_at: float | None, *, is_begun: bool) -> PathScores:
        def submit() -> int:
            left_s = None if ends_at is None else ends_at - time.monotonic()
            return self._engine.submit(request, deadline_s=left_s, is_begun=is_begun)

        reader = Reader(submit)
        with self._following(reader):
            scores = await reader.next()
        assert isinstance(scores, PathScores)
        return scores

    @contextmanager
    def _following(self, reader: Reader) -> Iterator[None]:
        """Within, the reader's sequence runs; one whose reader leaves before the end is aborted."""
        self._num_open += 1
        try:
            self.thread.call(self.thread.open, reader)
            if self.thread.is_dead:  # the thread may have ended without having seen the command
                raise self.thread.end_error()
            yield
        finally:
            self._num_open -= 1
            if not reader.is_finished:
                self.thread.call(self.thread.abort, reader)


async def all_of(coroutines: Iterable[Coroutine[Any, Any, Result]], *, at_once: int | None = None) -> list[Result]:
    """The results of all, in order. The first error, or a cancellation, ends the others before it is passed on.

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
