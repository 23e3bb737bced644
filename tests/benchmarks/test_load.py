from __future__ import annotations

import asyncio

import pytest

from benchmarks.load import complete

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [b'data: {"text":"a data: b"}\n\n', b'data: {"text":"\\ndata: "}\n\n', b"data: [DONE]\n\n"]
ANSWER = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"


async def _ask(answer: bytes, piece: int) -> int:
    """Tokens counted in an answer that comes in pieces of `piece` bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"{}")
            for start in range(0, len(answer), piece):
                writer.write(answer[start : start + piece])
                await asyncio.sleep(0.001)
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port, *_ = server.sockets[0].getsockname()
        return len((await complete(host, port, b"{}", 0.0)).token_s)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8, 13, 1000])
def test_a_token_is_counted_once_wherever_the_network_cuts_the_answer(piece: int) -> None:
    assert asyncio.run(_ask(ANSWER, piece)) == 2


@pytest.mark.parametrize(
    "answer", [ANSWER[:-20], HEAD.replace(b"200 OK", b"503 No") + b"2\r\n{}\r\n0\r\n\r\n"], ids=["half", "refused"]
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    with pytest.raises(AssertionError):
        asyncio.run(_ask(answer, 1000))
