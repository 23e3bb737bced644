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


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param", "words"),
    [
        ("GET", "/v1/tasks/sentimen", None, 404, "task", "there is no task sentimen; is it sentiment?"),
        ("GET", "/v1/tasks/sentimen/tokens", None, 404, "task", "is it sentiment?"),
        ("POST", "/v1/tasks/sentimen/run", {"input": "x"}, 404, "task", "is it sentiment?"),
        ("POST", "/v1/completions", {"model": "sentimen", "prompt": "x"}, 404, "model", "is it sentiment?"),
        ("GET", "/v1/models/sentimen", None, 404, "model", "is it sentiment?"),
        ("GET", "/v1/models/Sentiment", None, 404, "model", "a-z"),
        ("GET", "/v1/tasks/sentiment/versions/9", None, 404, "version", "task sentiment has no version 9"),
        ("DELETE", "/v1/tasks/nope", None, 404, "task", "there is no task nope"),
        ("PUT", "/v1/tasks/sentiment/aliases/live", {"version": 9}, 404, "version", "has no version 9"),
        ("PUT", "/v1/tasks/sentiment/aliases/live", {}, 400, "version", "give either version or weights"),
        ("PUT", "/v1/tasks/sentiment/aliases/a", {"weights": {"1": 0.5, "2": 0.6}}, 400, "weights", "add up to 1"),
        ("PUT", "/v1/tasks/sentiment/aliases/a", {"weights": {"1": 0.5, "2": 5}}, 400, "weights.2", "at most 1"),
        ("GET", "/v1/tasks/sentiment/tokens?compare=nope", None, 404, "compare", "there is no task nope"),
        (
            "POST",
            "/v1/tasks/written/versions",
            {"text": "x", "sampling": {"temperatur": 1}},
            400,
            "sampling.temperatur",
            "sampling.temperatur is not a sampling parameter",
        ),
        (
            "POST",
            "/v1/tasks/written/versions",
            {"text": "x", "sampling": {"temperature": 9}},
            400,
            "sampling.temperature",
            "temperature must be at least 0 and at most 2",
        ),
    ],
)
def test_a_name_that_is_not_there_is_named_as_the_route_names_it(
    http: httpx.Client, method: str, path: str, body: object, status: int, param: str, words: str
) -> None:
    answer = http.request(method, path, json=body) if body is not None else http.request(method, path)
    assert refused(answer)[:2] == (status, param)
    assert words in refused(answer)[2]


FILE = {"file": ("f.jsonl", b'{"input": "a", "target": "b"}')}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("/v1/files", {"json": {}}, 415, None, "multipart/form-data"),
        ("/v1/files", {}, 415, None, "multipart/form-data"),
        (
            "/v1/files",
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            None,
            "the form cannot be read: Missing boundary",
        ),
        ("/v1/files", {"files": [*FILE.items(), *FILE.items()]}, 400, None, "the form cannot be read: Too many files"),
        ("/v1/files", {"files": FILE, "data": {"purpos": "x"}}, 400, "purpos", "purpos is not a field of this form"),
        (
            "/v1/files",
            {"files": {"purpose": (None, "fine-tune"), "file": (None, "x")}},
            400,
            "file",
            "a file with a name",
        ),
        (
            "/v1/tasks/a/versions",
            {"files": FILE, "data": {"metadata": "{x"}},
            400,
            "metadata",
            "metadata is not valid JSON",
        ),
        ("/v1/tasks/a/versions", {"files": FILE}, 400, "prompt_embeddings", "the file is no safetensors file"),
        ("/v1/tasks/a/versions", {"files": FILE, "data": {"meta": "{}"}}, 400, "meta", "which has file and metadata"),
    ],
)
def test_a_form_that_is_refused_says_why(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    answer = http.post(path, **body)
    assert refused(answer)[:2] == (status, param)
    assert words in refused(answer)[2]
