"""UploadLimits: how many uploads a server takes at a time, and how many it checks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from app.engine.threads.passing_threads import begin_on_passing_thread
from app.errors import Overloaded

MAX_UPLOADS: Final = 4
RETRY_AFTER_S: Final = 5.0
Result = TypeVar("Result")


class UploadLimits:
    """At most MAX_UPLOADS bodies are held, and one of them is checked at a time.

    Attributes: num_uploads: bodies held now.
    """

    def __init__(self) -> None:
        self.num_uploads = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Enter it before a body is read; leave it once the body is no longer referenced.

        Raises Overloaded: as many bodies are held as may be.
        """
        if self.num_uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} uploads are being taken already", retry_after_s=RETRY_AFTER_S)
        self.num_uploads += 1
        try:
            yield
        finally:
            self.num_uploads -= 1

    async def check(self, work: Callable[[], Result]) -> Result:
        """Run `work` on a passing thread, in turn: checking a large file takes several times its size in memory.

        An upload whose turn has not come waits in the event loop, so it keeps no thread from other requests; cancelled
        there, its work never begins. Work that has begun is awaited even when cancelled, because it holds the body.
        """
        async with self._turn:
            checking = asyncio.wrap_future(begin_on_passing_thread(work))
            try:
                await asyncio.wait({checking})
            except asyncio.CancelledError:
                await asyncio.gather(checking, return_exceptions=True)
                raise
            return checking.result()
