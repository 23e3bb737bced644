"""Server-sent events: OpenAI's stream of `data:` lines, ended by `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.errors import Failure
from app.errors import SoftswapError

KEEP_ALIVE_S: Final = 15.0
DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
logger = logging.getLogger(__name__)


class Items(Protocol):
    """An asynchronous iterator that can be closed."""

    def __aiter__(self) -> AsyncIterator[BaseModel]: ...
    def __anext__(self) -> Awaitable[BaseModel]: ...
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
        async with aclosing(self._items), aclosing(_encode(self._items, self._id_of)) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def _encode(items: Items, id_of: Callable[[Any], str] | None) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_with_keep_alive(items)) as spaced:
            async for item in spaced:
                if item is None:
                    yield KEEP_ALIVE
                else:
                    yield _event(item.model_dump_json(exclude_unset=True), id_of(item) if id_of else None)
    except Exception as error:
        if not isinstance(error, SoftswapError):
            logger.exception("a stream failed")
        yield _event(json.dumps(Failure.of(error).body))


async def _with_keep_alive(items: Items) -> AsyncGenerator[BaseModel | None, None]:
    """The items, and None whenever KEEP_ALIVE_S pass without one, so that no proxy takes the silence for an end."""
    while True:
        pending = asyncio.ensure_future(anext(items, None))
        try:
            while not (await asyncio.wait({pending}, timeout=KEEP_ALIVE_S))[0]:
                yield None
            item = pending.result()
        finally:
            if not pending.done():
                pending.cancel()
                await asyncio.wait({pending})
        if item is None:
            return
        yield item


def _event(line: str, identifier: str | None = None) -> bytes:
    name = "" if identifier is None else f"id: {identifier}\n"
    return f"{name}data: {line}\n\n".encode()
