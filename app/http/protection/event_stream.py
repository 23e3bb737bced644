"""Server-sent events: OpenAI's stream of `data:` lines, ended by `[DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import SoftswapError
from app.http.protection.error_table import Failure

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n"
"""Without an empty line after it: OpenAI's SDK takes one that follows an event with an id for another, empty event."""
BLANK: Final = "\N{OPEN BOX}text\N{OPEN BOX}"
"""Stands for the text of a TextChunk; no name and no number contains it."""
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def dump_set(item: BaseModel) -> bytes:
    """JSON with the fields that were given."""
    return item.model_dump_json(exclude_unset=True).encode()


class EventStream(Response, Generic[Item]):
    """Sends each item as an event, and closes the iterator whatever happens.

    The status is sent before the first item, so a later error is sent as an event, as OpenAI's SDK expects it.
    Starlette's StreamingResponse leaves its iterator to the garbage collector when the client leaves during a send;
    here it is closed at once, and with it the work that feeds it.

    Args:
        encode: gives an item's JSON.
        first: an item that comes before the others.
        id_of: an item's id, which a client sends as `Last-Event-ID` to continue after that item; None gives no ids.
        keep_alive_s: seconds of silence after which a comment is sent, because a proxy would take silence for the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        items: AsyncGenerator[Item, None],
        encode: Callable[[Any], bytes] = dump_set,
        *,
        first: Item | None = None,
        id_of: Callable[[Item], str] | None = None,
        keep_alive_s: float = 15.0,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._items = items
        self._encode = encode
        self._first = first
        self._id_of = id_of
        self._keep_alive_s = keep_alive_s

    @classmethod
    async def started(cls, items: AsyncGenerator[Item, None], encode: Callable[[Any], bytes]) -> EventStream[Item]:
        """Waits for the first item, so that an error before it can still be a status."""
        try:
            return cls(items, encode, first=await anext(items, None))
        except BaseException:
            await items.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._items):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with self._break_silence(send) as write:
                try:
                    if self._first is not None:
                        await write(self._event(self._first))
                    async for item in self._items:
                        await write(self._event(item))
                except Exception as error:
                    if not isinstance(error, SoftswapError):
                        logger.exception("a stream failed")
                    await write(b"data: %b\n\n" % json.dumps(Failure.of(error).body).encode())
            await send({"type": "http.response.body", "body": DONE, "more_body": False})

    def _event(self, item: Item) -> bytes:
        name = b"" if self._id_of is None else f"id: {self._id_of(item)}\n".encode()
        return b"%bdata: %b\n\n" % (name, self._encode(item))

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


class TextChunk:
    """A chunk turned into JSON once, with room for any text.

    A stream has a chunk for every token. Building and checking the same objects around each takes a quarter of the
    event loop's time for a token.

    Args: chunk_of: gives the chunk that holds a text.
    """

    def __init__(self, chunk_of: Callable[[str], BaseModel]) -> None:
        blank = chunk_of(BLANK).model_dump_json(exclude_unset=True).encode()
        self._before, self._after = blank.split(to_json(BLANK))

    def with_text(self, text: str) -> bytes:
        """What `chunk_of(text).model_dump_json(exclude_unset=True)` gives, encoded."""
        return self._before + to_json(text) + self._after
