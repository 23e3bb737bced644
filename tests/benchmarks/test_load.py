from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.load import Client

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [b'data: {"text":"a data: b"}\n\n', b'data: {"text":"\\ndata: "}\n\n', b"data: [DONE]\n\n"]
ANSWER = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"


async def _ask(answer: bytes, piece: int, num_requests: int = 1) -> list[int]:
    """Tokens counted in each answer, which comes in pieces of `piece` bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closing_writer(writer):
            for _ in range(num_requests):
                await reader.readuntil(b"{}")
                for start in range(0, len(answer), piece):
                    writer.write(answer[start : start + piece])
                    await asyncio.sleep(0.001)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = Client(*server.sockets[0].getsockname()[:2])
        try:
            return [len((await client.complete(b"{}", 0.0)).token_s) for _ in range(num_requests)]
        finally:
            await client.close()


@asynccontextmanager
async def closing_writer(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8, 13, 1000])
def test_a_token_is_counted_once_wherever_the_network_cuts_the_answer(piece: int) -> None:
    assert asyncio.run(_ask(ANSWER, piece)) == [2]


def test_a_connection_is_used_again() -> None:
    assert asyncio.run(_ask(ANSWER, 1000, num_requests=3)) == [2, 2, 2]


@pytest.mark.parametrize(
    "answer", [ANSWER[:-20], HEAD.replace(b"200 OK", b"503 No") + b"2\r\n{}\r\n0\r\n\r\n"], ids=["half", "refused"]
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    with pytest.raises(AssertionError):
        asyncio.run(_ask(answer, 1000))
