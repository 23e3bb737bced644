"""Notifier: wakes coroutines that wait for news of a job; `notify` may be called from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from app.errors import Draining, Overloaded

MAX_LISTENERS = 64


class Listener:
    """Made by `Notifier.listening`, in the event loop that waits."""

    def __init__(self, notifier: Notifier, job_id: str) -> None:
        self.job_id = job_id
        self._notifier = notifier
        self._loop = asyncio.get_running_loop()
        self.news = asyncio.Event()

    async def wait(self) -> None:
        """Until the first `notify` after the last wait. Raises Draining: the server is stopping."""
        if not self._notifier.is_closed:
            await self.news.wait()
        self.news.clear()
        if self._notifier.is_closed:
            raise Draining("the server is stopping; follow the job again when it is back")

    def wake(self) -> None:
        with suppress(RuntimeError):  # its loop is closed, so no one waits
            self._loop.call_soon_threadsafe(self.news.set)


class Notifier:
    """Listeners delay no one: `notify` never waits."""

    def __init__(self) -> None:
        self.is_closed = False
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listening(self, job_id: str) -> Iterator[Listener]:
        """Raises Overloaded: MAX_LISTENERS are listening already."""
        listener = Listener(self, job_id)
        with self._lock:
            self.require_room()
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def require_room(self) -> None:
        """For callers who can still refuse with a status. Raises Overloaded: MAX_LISTENERS are listening already."""
        if self.num_listeners >= MAX_LISTENERS:
            raise Overloaded(f"{MAX_LISTENERS} clients follow jobs already", retry_after_s=5.0)

    def notify(self, job_id: str | None) -> None:
        """Wake those who listen to a job; None: to any."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            if job_id in (None, listener.job_id):
                listener.wake()

    def close(self) -> None:
        """Tell everyone who listens, now or later, that no news will come."""
        self.is_closed = True
        self.notify(None)
