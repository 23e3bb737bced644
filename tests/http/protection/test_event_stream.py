"""Server-sent events as OpenAI's SDK reads them, silence included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from openai._streaming import SSEDecoder
from pydantic import BaseModel

from app.http.protection import event_stream
from app.http.protection.event_stream import EventStream


class Event(BaseModel):
    id: str


async def slow_events() -> AsyncGenerator[Event, None]:
    for number in range(2):
        yield Event(id=f"event-{number}")
        await asyncio.sleep(0.2)


async def body_of(stream: EventStream) -> bytes:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await stream({"type": "http"}, None, send)
    return b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("has_ids", [True, False])
def test_silence_is_filled_with_nothing_that_the_sdk_takes_for_an_event(
    has_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.02)
    stream = EventStream(slow_events(), id_of=(lambda event: event.id) if has_ids else None)
    body = asyncio.run(body_of(stream))
    first, *_, last = body.split(b"data: ")
    assert (first == b"id: event-0\n") is has_ids
    assert body.count(event_stream.KEEP_ALIVE) > 2
    assert last == b"[DONE]\n\n"
    read = [event.data for event in SSEDecoder().iter_bytes(iter([body]))]
    assert read == ['{"id":"event-0"}', '{"id":"event-1"}', "[DONE]"]
