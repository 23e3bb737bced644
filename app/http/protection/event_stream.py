"""Server-sent events: OpenAI's stream of `data:` lines, ended by `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import SoftswapError
from app.http.protection.error_table import Failure

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n"
"""Without an empty line after it: OpenAI's SDK takes one that follows an event with an id for another, empty event."""
logger = logging.getLogger(__name__)


class Items(Protocol):
    """An asynchronous iterator that can be closed, over objects or their JSON."""

    def __aiter__(self) -> AsyncIterator[BaseModel | bytes]: ...
    def __anext__(self) -> Awaitable[BaseModel | bytes]: ...
    async def aclose(self) -> None: ...


class EventStream(Response):
    """Sends each item as an event, and closes the iterator whatever happens.

    The status is sent before the first item, so a later error is sent as an event, as OpenAI's SDK expects it.
    Starlette's StreamingResponse leaves its iterator to the garbage collector when the client leaves during a send;
    here it is closed at once, and with it the work that feeds it.

    Args:
        id_of: an item's id, which a client sends as `Last-Event-ID` to continue after that item; None gives no ids.
        keep_alive_s: seconds of silence after which a comment is sent, because a proxy would take silence for the end.
    """

    media_type = "text/event-stream"

    def __init__(self, items: Items, *, id_of: Callable[[Any], str] | None = None, keep_alive_s: float = 15.0) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._items = items
        self._id_of = id_of
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with self._break_silence(send) as write, aclosing(self._items):
            try:
                async for item in self._items:
                    await write(self._encode(item))
            except Exception as error:
                if not isinstance(error, SoftswapError):
                    logger.exception("a stream failed")
                await write(b"data: %b\n\n" % json.dumps(Failure.of(error).body).encode())
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    def _encode(self, item: BaseModel | bytes) -> bytes:
        line = item if isinstance(item, bytes) else item.model_dump_json(exclude_unset=True).encode()
        name = b"" if self._id_of is None else f"id: {self._id_of(item)}\n".encode()
        return b"%bdata: %b\n\n" % (name, line)

    @asynccontextmanager
    async def _break_silence(self, send: Send) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
        """Gives a function that writes to the body; whenever it has not been called for long, a comment is written."""
        clock = asyncio.get_running_loop().time
        written_s = clock()

        async def write(body: bytes) -> None:
            nonlocal written_s
            written_s = clock()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def keep_alive() -> None:
            while True:
                await asyncio.sleep(written_s + self._keep_alive_s - clock())
                if clock() - written_s >= self._keep_alive_s:
                    await write(KEEP_ALIVE)

        keeping_alive = asyncio.create_task(keep_alive())
        try:
            yield write
        finally:
            keeping_alive.cancel()
            await asyncio.gather(keeping_alive, return_exceptions=True)
