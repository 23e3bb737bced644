"""Retries: which jobs wait to be tried again after a fault that was not theirs, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

RETRY_S: Final = 5.0
MAX_RETRY_S: Final = 60.0


@dataclass(frozen=True)
class _Wait:
    duration_s: float
    ends_s: float


class Retries:
    """Kept in memory only: a server that starts tries every job at once.

    Args:
        clock: monotonic seconds.
        first_s: how long a job waits the first time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, first_s: float = RETRY_S) -> None:
        self._clock = clock
        self._first_s = first_s
        self._job_id_to_wait: dict[str, _Wait] = {}

    def put_off(self, job_id: str) -> float:
        """Returns the seconds it waits: twice as long each time, up to MAX_RETRY_S."""
        last = self._job_id_to_wait.get(job_id)
        duration_s = self._first_s if last is None else min(2 * last.duration_s, MAX_RETRY_S)
        self._job_id_to_wait[job_id] = _Wait(duration_s, self._clock() + duration_s)
        return duration_s

    @property
    def waiting(self) -> set[str]:
        """Ids of those that must not be tried yet."""
        now_s = self._clock()
        return {job_id for job_id, wait in self._job_id_to_wait.items() if wait.ends_s > now_s}

    @property
    def next_s(self) -> float | None:
        """Seconds until one may be tried; None if none is waiting."""
        ends_s = min((wait.ends_s for wait in self._job_id_to_wait.values()), default=None)
        return None if ends_s is None else max(0.0, ends_s - self._clock())

    def keep_only(self, job_ids: Collection[str]) -> set[str]:
        """Forget all others, whose ids are returned."""
        others = self._job_id_to_wait.keys() - job_ids
        for job_id in others:
            del self._job_id_to_wait[job_id]
        return others
