"""Call: what bounds the work for one caller, and travels with it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from app.errors import DeadlineExceeded


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
