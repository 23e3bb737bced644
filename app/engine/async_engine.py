"""AsyncEngine: the engine on a thread of its own, spoken to from an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from collections.abc import Sequence as Ids
from concurrent.futures import Future, wait
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from app.engine.config import EngineConfig, EngineStats
from app.engine.engine import Engine
from app.engine.output.delta import Delta
from app.engine.output.scoring import Scoring, ScoringPath, plan_scoring, sum_scores
from app.engine.sequence import FinishReason
from app.engine.threads.device_lease import DeviceLease
from app.errors import DeadlineExceeded, Draining, EngineDead, NumericalError, Overloaded, SoftswapError
from app.sampling import SamplingParams
from app.task_prompt import PromptKind, TaskPrompt

logger = logging.getLogger(__name__)

IDLE_HEARTBEAT_S = 0.5
MAX_FAILED_STEPS = 3
FULL_SHARE = 0.75
"""Share of the batch's rows from which on the engine counts as loaded and lends its device to nobody."""


@dataclass(eq=False)
class _Stream:
    """Deltas of one sequence on their way from the engine's thread to a coroutine."""

    loop: asyncio.AbstractEventLoop
    add: Callable[[], int]
    queue: asyncio.Queue[Delta | SoftswapError] = field(default_factory=asyncio.Queue)
    sequence_id: int | None = None


class AsyncEngine:
    """Call `start` once, then `generate` and `score` from any coroutine; `drain` and `close` at the end.

    The thread takes commands between steps, so nothing but this thread ever touches the engine's books.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._id_to_stream: dict[int, _Stream] = {}
        self._num_open = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._heartbeat_s = time.monotonic()
        self._is_closing = False
        self._is_draining = False
        self._is_dead = False
        self._num_failed_steps = 0
        self.lease = DeviceLease(lambda: self._commands.put(_nothing), share=engine.config.tuning_share)

    @property
    def config(self) -> EngineConfig:
        return self._engine.config

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_dead

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the thread last came round; a long forward counts as silence."""
        return time.monotonic() - self._heartbeat_s

    def start(self) -> None:
        self._thread.start()

    async def generate(
        self,
        token_ids: Ids[int],
        *,
        prompt: TaskPrompt | None,
        params: SamplingParams,
        cache_salt: str = "",
        flow: str = "",
        deadline_s: float | None = None,
        num_shared_tokens: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Generate behind `[prompt][text]`; closing the iterator ends the sequence within a step.

        Args:
            token_ids: the text, beginning-of-sequence id included where the backbone has one.
            cache_salt: who may find this text in the cache again: requests of the same salt.
            flow: whose fair share the tokens count against; also the metrics' label.
            deadline_s: seconds from now.
            num_shared_tokens: leading tokens that siblings of this request begin with too; computed once.

        Raises:
            InvalidInput, BackboneMismatch, Overloaded, Draining, EngineDead: before the first delta.
            DeadlineExceeded, NumericalError, EngineDead, Draining: instead of the rest; SoftswapError where a step of
                the engine failed.
        """
        self._check_open()
        self._engine.admission.check(token_ids, prompt, params, num_shared_tokens)

        def add() -> int:
            return self._engine.add(
                token_ids,
                prompt=prompt,
                params=params,
                flow=flow,
                deadline_s=deadline_s,
                num_shared_tokens=num_shared_tokens,
                cache_salt=cache_salt,
            )

        async with aclosing(self._follow(add)) as deltas:
            async for delta in deltas:
                yield delta

    async def score(
        self,
        token_ids: Ids[int],
        continuations: Ids[Ids[int]],
        *,
        prompt: TaskPrompt | None,
        cache_salt: str = "",
        flow: str = "",
        deadline_s: float | None = None,
    ) -> Scoring:
        """log P(continuation | prompt, text) of each continuation.

        The text's keys and values are computed once for all. Raises what `generate` raises.
        """
        self._check_open()
        wanted = [tuple(continuation) for continuation in continuations]
        self._engine.admission.check_scoring(token_ids, wanted, prompt)
        paths = plan_scoring(wanted)
        at_once = self.num_scored_at_once(len(paths))
        self._engine.check_queue(at_once)
        last = len(token_ids) - 1
        ends_at = None if deadline_s is None else time.monotonic() + deadline_s

        def add(place: int, path: ScoringPath) -> Callable[[], int]:
            return lambda: self._engine.add_scoring(
                [*token_ids, *path.token_ids],
                {last + num_in_front: ids for num_in_front, ids in path.targets.items()},
                prompt=prompt,
                flow=flow,
                deadline_s=None if ends_at is None else ends_at - time.monotonic(),
                num_shared_tokens=last if len(paths) > 1 else 0,
                cache_salt=cache_salt,
                is_admitted=place >= at_once,
            )

        adds = [add(place, path) for place, path in enumerate(paths)]
        ends = await self._gather([self._score_path(each) for each in adds], at_once=at_once)
        scores = [
            {(index - last, token_id): value for (index, token_id), value in (end.scores or {}).items()} for end in ends
        ]
        return Scoring(sum_scores(wanted, paths, scores), min(end.num_cached_tokens for end in ends))

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits; may be another way a moment later."""
        return not self._engine.has_unfinished

    def wants_warm(self, digest: str, kind: PromptKind, num_virtual_tokens: int) -> bool:
        """Whether `warm` would spare the first request with this prompt something."""
        return self._engine.warmer.wants(digest, kind, num_virtual_tokens)

    def warm(self, prompt: TaskPrompt) -> bool:
        """Compute a prompt before anybody asks for it. Blocks; not for coroutines.

        Returns: whether it is warm now; False where requests run, or its room is needed for others.
        Raises NumericalError: its keys and values are not finite.
        """
        outcome: Future[bool] = Future()
        self._commands.put(lambda: self._warm(prompt, outcome))
        while self.is_alive and not outcome.done():
            wait([outcome], timeout=IDLE_HEARTBEAT_S)
        return outcome.done() and outcome.result()

    def num_scored_at_once(self, num_paths: int) -> int:
        """Of a text's many continuations half a batch, and half the queue at most, is there at a time.

        Args: num_paths: sequences that scoring all of them takes.
        """
        return max(1, min(num_paths, self.config.max_num_seqs // 2, self.config.max_waiting_requests // 2))

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let the present ones end, and after `timeout_s` end what is left."""
        self._is_draining = True
        deadline_s = time.monotonic() + timeout_s
        while self._num_open and self.is_alive and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        self._commands.put(self._abort_all)
        while self._id_to_stream and self.is_alive and time.monotonic() < deadline_s + 1.0:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the thread. What still runs is told that the server is stopping."""
        self._is_draining = self._is_closing = True
        self._commands.put(_nothing)
        if self._thread.is_alive():
            self._thread.join()
        self._engine.close()

    def _check_open(self) -> None:
        if self._is_dead:
            raise self._end_error()
        if self._is_draining:
            raise Draining("the server is stopping")
        if self._commands.qsize() >= self.config.max_waiting_requests:
            raise Overloaded("the server's queue is full; try again later", retry_after_s=1.0)
        self._engine.check_queue()

    def _end_error(self) -> SoftswapError:
        """Why nothing is answered any more."""
        if self._is_closing:
            return Draining("the server stopped before the answer was complete")
        return EngineDead("the engine stopped working; the server must be restarted")

    @staticmethod
    async def _gather(paths: list[Coroutine[None, None, Delta]], *, at_once: int) -> list[Delta]:
        """The ends of all paths, so many at a time; the first error ends the other paths."""
        slots = asyncio.Semaphore(at_once)

        async def run(path: Coroutine[None, None, Delta]) -> Delta:
            with closing(path):
                async with slots:
                    return await path

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(path)) for path in paths]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _score_path(self, add: Callable[[], int]) -> Delta:
        """The last delta, which holds the scores."""
        async with aclosing(self._follow(add)) as deltas:
            async for delta in deltas:
                if delta.finish_reason is not None:
                    assert delta.scores is not None
                    return delta
        raise AssertionError("a sequence ended without a reason")

    async def _follow(self, add: Callable[[], int]) -> AsyncGenerator[Delta, None]:
        """Submit, and yield deltas until the one with a reason; abort when the reader leaves first."""
        stream = _Stream(asyncio.get_running_loop(), add)
        self._num_open += 1
        is_finished = False
        self._commands.put(lambda: self._open(stream))
        try:
            if self._is_dead:  # the thread may have ended without having seen the command
                raise self._end_error()
            while not is_finished:
                item = await stream.queue.get()
                is_finished = isinstance(item, SoftswapError) or item.finish_reason is not None
                if isinstance(item, SoftswapError):
                    raise item
                _raise_for(item.finish_reason)
                yield item
        finally:
            self._num_open -= 1
            if not is_finished:
                self._commands.put(lambda: self._abort(stream))

    # From here on: the engine's thread.

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._heartbeat_s = time.monotonic()
                self._take_commands()
                if self._engine.has_unfinished:
                    self._step()
                if self.lease.has_turns:
                    self._give_turn()
        except BaseException:
            logger.exception("the engine's thread ended")
        finally:
            self._is_dead = True
            self.lease.close(self._end_error())
            self._end_all(self._end_error())
            self._answer_rest()

    def _take_commands(self) -> None:
        """Carry out what was asked for; wait a moment for it when there is nothing else to do."""
        try:
            patience_s = self.lease.rest_s if self.lease.has_turns else IDLE_HEARTBEAT_S
            if self._engine.has_unfinished or not patience_s:
                self._commands.get_nowait()()
            else:
                self._commands.get(timeout=patience_s)()
            while True:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _answer_rest(self) -> None:
        """Tell those whose command came too late."""
        try:
            while True:
                self._commands.get_nowait()()
        except Empty:
            pass

    def _warm(self, prompt: TaskPrompt, outcome: Future[bool]) -> None:
        try:
            is_idle = not (self._is_dead or self._is_draining or self._engine.has_unfinished)
            outcome.set_result(is_idle and self._engine.warm(prompt, lambda: not self._commands.empty()))
        except Exception as error:  # nobody asked for it, so nobody else is to suffer
            outcome.set_exception(error)

    def _give_turn(self) -> None:
        stats, is_idle = self._engine.stats, not self._engine.has_unfinished
        if not is_idle and not self._commands.empty():
            return  # who has come during the step is not to wait for a guest
        is_full = stats.num_running >= FULL_SHARE * self.config.max_num_seqs
        took_s = self.lease.give_turn(is_idle=is_idle, is_loaded=is_full or stats.num_waiting > 0)
        if took_s:
            self._engine.observe_lent(took_s)

    def _step(self) -> None:
        began_s = time.perf_counter()
        try:
            deltas = self._engine.step()
        except Exception:
            self._num_failed_steps += 1
            logger.exception("a step failed; every running sequence is ended")
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
            self._deliver_failed(self._engine.reset())
        else:
            self._num_failed_steps = 0
            self._deliver(deltas)
            self.lease.note_step(time.perf_counter() - began_s)

    def _open(self, stream: _Stream) -> None:
        if self._is_dead:
            _post([(stream, self._end_error())])
            return
        try:
            stream.sequence_id = stream.add()
        except SoftswapError as error:
            _post([(stream, error)])
        except Exception:
            logger.exception("a request could not be queued")
            _post([(stream, SoftswapError("the request could not be queued"))])
        else:
            self._id_to_stream[stream.sequence_id] = stream

    def _abort(self, stream: _Stream) -> None:
        if stream.sequence_id is not None and self._id_to_stream.pop(stream.sequence_id, None) is not None:
            self._engine.abort(stream.sequence_id)

    def _abort_all(self) -> None:
        for sequence_id in list(self._id_to_stream):
            self._engine.abort(sequence_id)
        self._end_all(Draining("the server stopped before the answer was complete"))

    def _end_all(self, error: SoftswapError) -> None:
        streams = list(self._id_to_stream.values())
        self._id_to_stream.clear()
        _post([(stream, error) for stream in streams])

    def _deliver(self, deltas: list[tuple[int, Delta]]) -> None:
        items = [(self._id_to_stream[sequence_id], delta) for sequence_id, delta in deltas]
        for sequence_id, delta in deltas:
            if delta.finish_reason is not None:
                del self._id_to_stream[sequence_id]
        _post(items)

    def _deliver_failed(self, deltas: list[tuple[int, Delta]]) -> None:
        """What a failed step left: those it ended are told that the fault was not theirs."""
        ended = [sequence_id for sequence_id, delta in deltas if delta.finish_reason is FinishReason.ERROR]
        self._deliver([pair for pair in deltas if pair[1].finish_reason is not FinishReason.ERROR])
        error = SoftswapError("a step of the engine failed before the answer was complete; try again")
        _post([(self._id_to_stream.pop(sequence_id), error) for sequence_id in ended])


def _nothing() -> None:
    """A command that only wakes the engine's thread."""


def _post(items: list[tuple[_Stream, Delta]] | list[tuple[_Stream, SoftswapError]]) -> None:
    """Wake each event loop once, with everything there is for it."""
    loop_to_items: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Delta | SoftswapError]]] = {}
    for stream, item in items:
        loop_to_items.setdefault(stream.loop, []).append((stream, item))
    for loop, batch in loop_to_items.items():
        try:
            loop.call_soon_threadsafe(_put_all, batch)
        except RuntimeError:  # the loop is closed, so nobody waits
            logger.debug("an event loop closed before its last deltas came")


def _put_all(items: list[tuple[_Stream, Delta | SoftswapError]]) -> None:
    for stream, item in items:
        stream.queue.put_nowait(item)


def _raise_for(reason: FinishReason | None) -> None:
    if reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the request's deadline passed before the answer was complete")
    if reason is FinishReason.ERROR:
        raise NumericalError("the model gave values that are not finite for this request")
