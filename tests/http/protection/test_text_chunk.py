"""TextChunk gives what building and serializing each chunk gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.http.openai.chat_schema import ChatChunk, ChatChunkChoice, ChatDelta
from app.http.openai.completions import Completion, CompletionChoice
from app.http.protection.event_stream import BLANK, TextChunk

HEAD: dict[str, Any] = {"id": "cmpl-1", "created": 1, "model": "raw@1", "system_fingerprint": "fp_1"}
TEXTS = ["", "a", ' "quoted" \\ / ', "\n\r\t\b\f\0\x1f\x7f", "ä 漢 😀 \u2028 \ufffd", "</script>", BLANK, '":null}']


def completion_of(text: str) -> BaseModel:
    choice = CompletionChoice(index=3, text=text, logprobs=None, finish_reason=None)
    return Completion(object="text_completion", **HEAD, choices=[choice], usage=None)


def chat_chunk_of(text: str) -> BaseModel:
    choice = ChatChunkChoice(index=0, delta=ChatDelta(content=text), logprobs=None, finish_reason=None)
    return ChatChunk(object="chat.completion.chunk", **HEAD, choices=[choice])


class SlowChunk:
    def __init__(self, chunk_of: Callable[[str], BaseModel]) -> None:
        self._chunk_of = chunk_of

    def with_text(self, text: str) -> bytes:
        return self._chunk_of(text).model_dump_json(exclude_unset=True).encode()


@pytest.mark.parametrize("chunk_of", [completion_of, chat_chunk_of])
@pytest.mark.parametrize("text", TEXTS)
def test_it_gives_the_bytes_of_the_whole_chunk(chunk_of: Callable[[str], BaseModel], text: str) -> None:
    assert TextChunk(chunk_of).with_text(text) == SlowChunk(chunk_of).with_text(text)


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        ("completions", {"prompt": ["one", "two"], "n": 2, "echo": True, "seed": 1}),
        ("completions", {"prompt": "one", "logprobs": 1, "stream_options": {"include_usage": True}}),
        ("completions", {"prompt": "one", "max_tokens": 1, "stream_options": {"include_usage": True}}),
        ("chat/completions", {"n": 2, "seed": 1, "stream_options": {"include_usage": True}}),
        ("chat/completions", {"logprobs": True}),
    ],
)
def test_a_stream_is_what_it_is_without_it(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, request_body: dict[str, Any]
) -> None:
    body = {"model": "headline", "max_tokens": 6, "temperature": 0.5, "seed": 0, "ignore_eos": True} | request_body
    body |= {"stream": True} | ({"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else {})
    _stream(http, path, body)  # from now on the text is in the cache, and its tokens are counted as cached
    found = _stream(http, path, body)
    monkeypatch.setattr("app.http.openai.choice_writer.TextChunk", SlowChunk)
    assert found == _stream(http, path, body)
    assert len(found) > 1


def _stream(http: httpx.Client, path: str, body: dict[str, Any]) -> list[str]:
    """The chunks as JSON without what differs between two streams, by their choices."""
    lines = [line.removeprefix("data: ") for line in http.post(f"/v1/{path}", json=body).text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) | {"id": "", "created": 0} for line in lines]
    return sorted((json.dumps(chunk) for chunk in chunks), key=_index_of)


def _index_of(chunk: str) -> int:
    choices = json.loads(chunk)["choices"]
    return choices[0]["index"] if choices else len(chunk)
