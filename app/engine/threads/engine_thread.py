"""EngineThread: the one thread that touches an engine, and what reaches it from other threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import ParamSpec

from app.engine.engine import Engine
from app.engine.output.output import Delta, PathScores
from app.engine.sequence import FinishReason
from app.engine.threads.device_lease import DeviceLease
from app.errors import DeadlineExceeded, Draining, EngineDead, NumericalError, SoftswapError
from app.task_prompt import TaskPrompt

logger = logging.getLogger(__name__)

IDLE_HEARTBEAT_S = 0.5
MAX_FAILED_STEPS = 3
FULL_SHARE = 0.75
"""Share of the batch's rows from which on the engine counts as loaded and lends its device to no one."""

P = ParamSpec("P")
Item = Delta | PathScores | SoftswapError


class Reader:
    """Waits on an event loop for what one sequence gives; the last item has a finish reason or is an error.

    Args:
        submit: queues the sequence and returns its id; called on the engine's thread.
    """

    def __init__(self, submit: Callable[[], int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.submit = submit
        self.sequence_id: int | None = None
        self.is_finished = False
        self._items: asyncio.Queue[Item] = asyncio.Queue()

    def take(self, item: Item) -> None:
        """Called on the reader's event loop."""
        self.is_finished = isinstance(item, SoftswapError) or item.finish_reason is not None
        self._items.put_nowait(item)

    async def next(self) -> Delta | PathScores:
        """The next item. Raises the error that came instead."""
        item = await self._items.get()
        if isinstance(item, SoftswapError):
            raise item
        if item.finish_reason is FinishReason.DEADLINE:
            raise DeadlineExceeded("the request's deadline passed before the answer was complete")
        if item.finish_reason is FinishReason.ERROR:
            raise NumericalError("the model gave values that are not finite for this request")
        return item


class EngineThread:
    """Takes commands between two steps, and hands each reader what the steps gave.

    Attributes:
        heartbeat_s: monotonic time at which the thread last came round.
        is_draining: no new warming is begun.
        is_dead: the thread has ended, or is about to, and answers every reader with `end_error`.
        lease: turns on this thread for tuning.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._id_to_reader: dict[int, Reader] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._is_closing = False
        self._num_failed_steps = 0
        self.heartbeat_s = time.monotonic()
        self.is_draining = False
        self.is_dead = False
        self.lease = DeviceLease(self.wake, share=engine.config.tuning_share)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self.is_dead

    @property
    def num_commands(self) -> int:
        """Commands that the thread has not taken yet."""
        return self._commands.qsize()

    @property
    def has_readers(self) -> bool:
        return bool(self._id_to_reader)

    def end_error(self) -> SoftswapError:
        """Why nothing is answered any more."""
        if self._is_closing:
            return Draining("the server stopped before the answer was complete")
        return EngineDead("the engine stopped working; the server must be restarted")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for its end."""
        self.is_draining = self._is_closing = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def call(self, command: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the thread carry out a command, such as `open` and those after it, before its next step."""
        self._commands.put(partial(command, *args, **kwargs))

    def wake(self) -> None:
        """Have the thread look again if it waits for something to do."""
        self.call(lambda: None)

    # From here on: only the thread itself.

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self.heartbeat_s = time.monotonic()
                self.take_commands()
                if self._engine.has_unfinished:
                    self._step()
                if self.lease.has_turns:
                    self.give_turn()
        except BaseException:
            logger.exception("the engine's thread ended")
        finally:
            self.is_dead = True
            self.lease.close(self.end_error())
            self._end_all(self.end_error())
            self._take_rest()

    def take_commands(self) -> None:
        """Carry out all commands there are; if there is nothing else to do, wait a moment for one."""
        patience_s = self.lease.rest_s if self.lease.has_turns else IDLE_HEARTBEAT_S
        with suppress(Empty):
            if self._engine.has_unfinished or not patience_s:
                self._commands.get_nowait()()
            else:
                self._commands.get(timeout=patience_s)()
            self._take_rest()

    def give_turn(self) -> None:
        """Lend the device for one turn, if it is time for one."""
        stats, is_idle = self._engine.stats, not self._engine.has_unfinished
        if not is_idle and not self._commands.empty():
            return  # a request that came during the step does not wait for a guest
        is_full = stats.num_running >= FULL_SHARE * self._engine.config.max_num_seqs
        took_s = self.lease.give_turn(is_idle=is_idle, is_loaded=is_full or stats.num_waiting > 0)
        if took_s:
            self._engine.metrics.tuning_seconds.inc(took_s)

    def _take_rest(self) -> None:
        with suppress(Empty):
            while True:
                self._commands.get_nowait()()

    def warm(self, prompt: TaskPrompt, outcome: Future[bool]) -> None:
        """Answer whether the prompt is warm, once it was tried; see `Engine.warm`."""
        try:
            is_idle = not (self.is_dead or self.is_draining or self._engine.has_unfinished)
            outcome.set_result(is_idle and self._engine.warm(prompt, lambda: not self._commands.empty()))
        except Exception as error:  # no request asked for it, so no request may suffer
            outcome.set_exception(error)

    def _step(self) -> None:
        began_s = time.perf_counter()
        try:
            deltas = self._engine.step()
        except Exception:
            self._num_failed_steps += 1
            logger.exception("a step failed; every running sequence is ended")
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
            ended: list[tuple[int, Delta | PathScores]] = [*self._engine.reset(), *self._engine.take_scores()]
            self._deliver([_blame_step(*item) for item in ended])
        else:
            self._num_failed_steps = 0
            self._deliver([*deltas, *self._engine.take_scores()])
            self.lease.note_step(time.perf_counter() - began_s)

    def open(self, reader: Reader) -> None:
        """Begin the reader's sequence."""
        if self.is_dead:
            _post([(reader, self.end_error())])
            return
        try:
            reader.sequence_id = reader.submit()
        except SoftswapError as error:
            _post([(reader, error)])
        except Exception:
            logger.exception("a request could not be queued")
            _post([(reader, SoftswapError("the request could not be queued"))])
        else:
            self._id_to_reader[reader.sequence_id] = reader

    def abort(self, reader: Reader) -> None:
        """End the reader's sequence. The reader gets nothing more."""
        if reader.sequence_id is not None and self._id_to_reader.pop(reader.sequence_id, None) is not None:
            self._engine.abort(reader.sequence_id)

    def abort_all(self) -> None:
        """End every sequence; the readers are told that the server is stopping."""
        for sequence_id in list(self._id_to_reader):
            self._engine.abort(sequence_id)
        self._end_all(Draining("the server stopped before the answer was complete"))

    def _end_all(self, error: SoftswapError) -> None:
        readers = list(self._id_to_reader.values())
        self._id_to_reader.clear()
        _post([(reader, error) for reader in readers])

    def _deliver(self, items: Sequence[tuple[int, Item]]) -> None:
        posted = [(self._id_to_reader[sequence_id], item) for sequence_id, item in items]
        for sequence_id, item in items:
            if isinstance(item, SoftswapError) or item.finish_reason is not None:
                del self._id_to_reader[sequence_id]
        _post(posted)


def _blame_step(sequence_id: int, item: Delta | PathScores) -> tuple[int, Item]:
    """What a failed step left: the sequences that it ended are told that the fault was not theirs."""
    if item.finish_reason is not FinishReason.ERROR:
        return sequence_id, item
    return sequence_id, SoftswapError("a step of the engine failed before the answer was complete; try again")


def _post(items: Sequence[tuple[Reader, Item]]) -> None:
    """Wake each event loop once, with everything there is for it."""
    loop_to_items: dict[asyncio.AbstractEventLoop, list[tuple[Reader, Item]]] = {}
    for reader, item in items:
        loop_to_items.setdefault(reader.loop, []).append((reader, item))
    for loop, batch in loop_to_items.items():
        try:
            loop.call_soon_threadsafe(_take_all, batch)
        except RuntimeError:  # the loop is closed, so no one waits
            logger.debug("an event loop closed before its last items came")


def _take_all(items: Sequence[tuple[Reader, Item]]) -> None:
    for reader, item in items:
        reader.take(item)
