"""Refusals name the field at fault as the route calls it, in `param` and in words that say what to do."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

LONG = "word " * 3000
USER = [{"role": "user", "content": LONG}]


def refused(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "headline", "prompt": LONG}, "prompt"),
        ("/v1/chat/completions", {"model": "headline", "messages": USER}, "messages"),
        ("/v1/chat/completions", {"model": "headline", "messages": USER, "stream": True}, "messages"),
        ("/v1/decisions", {"model": "sentiment", "input": LONG}, "input"),
        ("/v1/tasks/sentiment/run", {"input": LONG}, "input"),
        ("/v1/tasks/headline/run", {"input": LONG}, "input"),
        ("/v1/tasks/headline/run", {"input": LONG, "stream": True}, "input"),
        ("/v1/tasks/headline/run", {"inputs": ["x", LONG]}, "inputs.1"),
    ],
)
def test_a_text_that_is_too_long_is_named_as_the_request_names_it(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    status, named, message = refused(http.post(path, json=body))
    assert (status, named) == (400, param)
    assert "there is room for" in message
