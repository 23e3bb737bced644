"""Server-sent events as OpenAI's SDK reads them, silence and errors included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from openai._streaming import SSEDecoder
from pydantic import BaseModel

from app.errors import DeadlineExceeded
from app.http.protection.event_stream import KEEP_ALIVE, EventStream


class Event(BaseModel):
    id: str


async def slow_events() -> AsyncGenerator[Event, None]:
    for number in range(2):
        yield Event(id=f"event-{number}")
        await asyncio.sleep(0.2)


async def failing_events(error: Exception, closed: list[bool]) -> AsyncGenerator[bytes, None]:
    """One event, then an error. Notes when it is closed."""
    try:
        yield b'{"id":"event-0"}'
        raise error
    finally:
        closed.append(True)


async def body_of(stream: EventStream[Any]) -> bytes:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await stream({"type": "http"}, None, send)
    return b"".join(message.get("body", b"") for message in sent)


def data_of(body: bytes) -> list[str]:
    return [event.data for event in SSEDecoder().iter_bytes(iter([body]))]


@pytest.mark.parametrize("has_ids", [True, False])
def test_silence_is_filled_with_nothing_that_the_sdk_takes_for_an_event(has_ids: bool) -> None:
    id_of = (lambda event: event.id) if has_ids else None
    body = asyncio.run(body_of(EventStream(slow_events(), id_of=id_of, keep_alive_s=0.02)))
    first, *_, last = body.split(b"data: ")
    assert (first == b"id: event-0\n") is has_ids
    assert body.count(KEEP_ALIVE) > 2
    assert last == b"[DONE]\n\n"
    assert data_of(body) == ['{"id":"event-0"}', '{"id":"event-1"}', "[DONE]"]


@pytest.mark.parametrize(
    ("error", "code"), [(DeadlineExceeded("too late"), "deadline_exceeded"), (ValueError("a secret"), "internal_error")]
)
def test_an_error_after_the_status_is_an_event_and_the_items_are_closed(error: Exception, code: str) -> None:
    closed: list[bool] = []
    body = asyncio.run(body_of(EventStream(failing_events(error, closed), bytes)))
    first, failure, last = data_of(body)
    assert (first, last) == ('{"id":"event-0"}', "[DONE]")
    assert json.loads(failure)["error"]["code"] == code
    assert b"secret" not in body
    assert closed


def test_the_items_are_closed_when_the_client_leaves_during_a_send() -> None:
    closed: list[bool] = []
    items = failing_events(ValueError(), closed)

    async def leave() -> None:
        is_sending = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                is_sending.set()
                await asyncio.Event().wait()

        sending = asyncio.create_task(EventStream(items, bytes)({"type": "http"}, None, send))
        await is_sending.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert closed

    asyncio.run(leave())
