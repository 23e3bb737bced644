"""Server-sent events: OpenAI's stream of `data:` lines, ended by `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import SoftswapError
from app.http.protection.error_table import Failure

KEEP_ALIVE_S: Final = 15.0
DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n"
"""No empty line behind it: behind an event that had an id, OpenAI's SDK takes that for another event, of no data."""
logger = logging.getLogger(__name__)


class Items(Protocol):
    """An asynchronous iterator that can be closed, over objects or what they are as JSON."""

    def __aiter__(self) -> AsyncIterator[BaseModel | bytes]: ...
    def __anext__(self) -> Awaitable[BaseModel | bytes]: ...
    async def aclose(self) -> None: ...


class EventStream(Response):
    """Sends each item of a generator as an event, and closes the generator whatever happens.

    The status is on the wire before the first item, so an error after that goes in band, as OpenAI's SDK expects it.
    Starlette's StreamingResponse leaves its generator to the garbage collector when the client is gone in the middle
    of a send; here it is closed at once, and with it the work behind it.

    Args: id_of: what a client sends back as `Last-Event-ID` to go on behind an item; None gives no ids.
    """

    media_type = "text/event-stream"

    def __init__(self, items: Items, *, id_of: Callable[[Any], str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._items = items
        self._id_of = id_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with _keeping_alive(send) as write, aclosing(self._items), aclosing(self._encode()) as events:
            async for event in events:
                await write(event)
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _encode(self) -> AsyncGenerator[bytes, None]:
        try:
            async for item in self._items:
                line = item if isinstance(item, bytes) else item.model_dump_json(exclude_unset=True).encode()
                yield _event(line, self._id_of(item) if self._id_of else None)
        except Exception as error:
            if not isinstance(error, SoftswapError):
                logger.exception("a stream failed")
            yield _event(json.dumps(Failure.of(error).body).encode())


@asynccontextmanager
async def _keeping_alive(send: Send) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    """Gives what writes to the body; a comment ends each KEEP_ALIVE_S of silence, which a proxy takes for an end."""
    clock = asyncio.get_running_loop().time
    written_s = clock()

    async def write(body: bytes) -> None:
        nonlocal written_s
        written_s = clock()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def break_silence() -> None:
        while True:
            await asyncio.sleep(written_s + KEEP_ALIVE_S - clock())
            if clock() - written_s >= KEEP_ALIVE_S:
                await write(KEEP_ALIVE)

    breaker = asyncio.create_task(break_silence())
    try:
        yield write
    finally:
        breaker.cancel()
        await asyncio.gather(breaker, return_exceptions=True)


def _event(line: bytes, identifier: str | None = None) -> bytes:
    name = b"" if identifier is None else f"id: {identifier}\n".encode()
    return b"%bdata: %b\n\n" % (name, line)
