"""Notifier: wakes coroutines that wait for news of a job; `notify` may be called from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from app.errors import Draining, Overloaded

MAX_LISTENERS = 64


@dataclass(eq=False)
class Listener:
    """Made by `Notifier.listening`, in the event loop that waits."""

    job_id: str
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_closed: bool = False

    async def wait(self) -> None:
        """Until the first `notify` after the last wait. Raises Draining: the server is stopping."""
        await self.news.wait()
        self.news.clear()
        if self.is_closed:
            raise Draining("the server is stopping; follow the job again when it is back")


class Notifier:
    """Listeners delay no one: `notify` never waits."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listening(self, job_id: str) -> Iterator[Listener]:
        """Raises Overloaded: MAX_LISTENERS are listening already."""
        listener = Listener(job_id)
        with self._lock:
            self.require_room()
            self._listeners.add(listener)
            listener.is_closed = self._is_closed
        if listener.is_closed:
            listener.news.set()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def require_room(self) -> None:
        """For callers who can still refuse with a status. Raises Overloaded: MAX_LISTENERS are listening already."""
        if self.num_listeners >= MAX_LISTENERS:
            raise Overloaded(f"{MAX_LISTENERS} clients follow jobs already", retry_after_s=5.0)

    def notify(self, job_id: str) -> None:
        with self._lock:
            called = [listener for listener in self._listeners if listener.job_id == job_id]
        _wake(called)

    def close(self) -> None:
        """Tell everyone who listens, now or later, that no news will come."""
        with self._lock:
            self._is_closed = True
            called = list(self._listeners)
        for listener in called:
            listener.is_closed = True
        _wake(called)


def _wake(listeners: list[Listener]) -> None:
    for listener in listeners:
        with suppress(RuntimeError):  # its loop is closed, so no one waits
            listener.loop.call_soon_threadsafe(listener.news.set)
