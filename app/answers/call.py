"""Whether the server takes a request (Readiness), and what bounds the work for it (Call)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.engine.async_engine import AsyncEngine
from app.errors import DeadlineExceeded, Draining, EngineDead

MAX_HEARTBEAT_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """Attributes:
    ends_at_s: `time.monotonic()` from which on an answer is of no use.
    cache_salt: computed text is shared only between calls of the same salt.
    """

    ends_at_s: float
    cache_salt: str = ""

    @classmethod
    def within(cls, timeout_s: float, cache_salt: str = "") -> Call:
        """A call that ends `timeout_s` seconds from now."""
        return cls(time.monotonic() + timeout_s, cache_salt)

    @property
    def left_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded: none."""
        left_s = self.ends_at_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before the answer was complete")
        return left_s


class Readiness:
    """Of one server.

    Args: on_stop: what is called when the server begins to stop; perhaps more than once.

    Attributes:
        is_ready: set once the first request would be served.
        is_draining: set when the server begins to stop, and never reset.
    """

    def __init__(self, engine: AsyncEngine, on_stop: Sequence[Callable[[], None]] = ()) -> None:
        self._engine = engine
        self._on_stop = on_stop
        self.is_ready = False
        self.is_draining = False

    def begin_to_stop(self) -> None:
        """Take no new requests."""
        self.is_draining = True
        for stop in self._on_stop:
            stop()

    def check_alive(self) -> None:
        """Raises EngineDead: the engine's thread ended or makes no progress."""
        if not self._engine.is_alive:
            raise EngineDead("The engine thread ended; restart the server")
        if self._engine.heartbeat_age_s > MAX_HEARTBEAT_AGE_S:
            raise EngineDead(f"The engine thread has not answered for {MAX_HEARTBEAT_AGE_S:g} seconds")

    def check_accepting(self) -> None:
        """Raises Draining while the server starts or stops, EngineDead as `check_alive` does."""
        if self.is_draining:
            raise Draining("The server is stopping; send the request to another one")
        if not self.is_ready:
            raise Draining("The server is starting; try again in a moment")
        self.check_alive()
