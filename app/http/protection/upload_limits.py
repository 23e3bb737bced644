"""Intake: uploads, of which few are taken at a time, and one is checked at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from app.engine.threads.passing_threads import begin_on_passing_thread
from app.errors import Overloaded
from app.http.protection.limits import MAX_UPLOADS

Result = TypeVar("Result")
RETRY_AFTER_S: Final = 5.0


class Intake:
    """Of one server. What waits for its check waits in the event loop, and keeps no thread from other requests."""

    def __init__(self) -> None:
        self._num_uploads = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Enter it before a body is read, and leave it when nobody holds the body any more.

        Raises Overloaded: as many are held as may be.
        """
        if self._num_uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} uploads are being taken already", retry_after_s=RETRY_AFTER_S)
        self._num_uploads += 1
        try:
            yield
        finally:
            self._num_uploads -= 1

    async def check(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises, on a passing thread, in turn: a large file takes several times its size there.

        Work that is cancelled before its turn never begins. Later it is waited for, because it holds the body.
        """
        async with self._turn:
            checking = asyncio.wrap_future(begin_on_passing_thread(work))
            try:
                await asyncio.wait({checking})
            except asyncio.CancelledError:
                await asyncio.gather(checking, return_exceptions=True)
                raise
            return checking.result()
