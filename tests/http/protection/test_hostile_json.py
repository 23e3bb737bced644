"""No body makes a 5xx, and no answer repeats what was sent."""

from __future__ import annotations

import gzip
import json
import socket

import httpx
import pytest

from tests.support.server import LiveServer

JSON = {"content-type": "application/json"}
SECRET = "tell-no-one"


def _completion(prompt: str) -> bytes:
    return b'{"model": "raw", "max_tokens": 1, "prompt": ' + prompt.encode() + b"}"


HOSTILE = {
    "nothing": b"",
    "a NUL": b"\0",
    "not JSON": b"{'model': 1}",
    "NaN": b'{"model": "raw", "prompt": "x", "temperature": NaN}',
    "Infinity": b'{"model": "raw", "prompt": "x", "temperature": Infinity}',
    "-Infinity": b'{"model": "raw", "prompt": "x", "logit_bias": {"1": -Infinity}}',
    "a number beyond floats": b'{"model": "raw", "prompt": "x", "temperature": 1e999}',
    "half a surrogate pair": b'{"model": "raw", "prompt": "\\ud800"}',
    "half a surrogate pair in a key": b'{"model": "raw", "prompt": "x", "\\udfff": 1}',
    "a NUL in a name": b'{"model": "raw\\u0000", "prompt": "x"}',
    "an integer of 10,000 digits": b'{"model": "raw", "prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    "an integer beyond 64 bits": b'{"model": "raw", "prompt": "x", "seed": 18446744073709551616}',
    "100,000 nested lists": _completion("[" * 100_000 + "]" * 100_000),
    "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a key twice": b'{"model": "raw", "model": "headline", "prompt": "x"}',
    "a string for a number": b'{"model": "raw", "prompt": "x", "temperature": "1"}',
    "a float for an integer": b'{"model": "raw", "prompt": "x", "n": 1.5}',
    "true for an integer": b'{"model": "raw", "prompt": "x", "n": true}',
    "an object for a string": _completion('{"a": "tell-no-one"}'),
    "a list as the body": b'["tell-no-one"]',
    "a string as the body": b'"tell-no-one"',
    "null as the body": b"null",
    "an unknown field": b'{"model": "raw", "prompt": "x", "tell": "tell-no-one"}',
    "no prompt at all": b'{"model": "raw"}',
    "an empty list": _completion("[]"),
    "an empty list of ids": _completion("[[]]"),
    "mixed kinds": _completion('[1, "tell-no-one"]'),
    "an id beyond the vocabulary": _completion("[259]"),
    "an id beyond 64 bits": _completion("[99999999999999999999]"),
    "a negative id": _completion("[-1]"),
    "65 prompts": _completion(json.dumps(["x"] * 65)),
    "a text beyond the context": _completion(json.dumps("tell-no-one" * 10_000)),
    "5 stop strings": b'{"model": "raw", "prompt": "x", "stop": ["a", "b", "c", "d", "tell-no-one"]}',
    "an empty stop string": b'{"model": "raw", "prompt": "x", "stop": ""}',
    "n of a million": b'{"model": "raw", "prompt": "x", "n": 1000000}',
    "logprobs of a million": b'{"model": "raw", "prompt": "x", "logprobs": 1000000}',
    "a hostile name": b'{"model": "../../etc/passwd", "prompt": "x"}',
    "a name with a new line": b'{"model": "raw\\r\\nx-evil: 1", "prompt": "x"}',
    "bytes that are no UTF-8": b'{"model": "raw", "prompt": "\xff\xfe"}',
    "UTF-16": json.dumps({"model": "raw", "prompt": "x"}).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + b'{"model": "raw", "prompt": "x"}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_a_short_400_in_openais_shape(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/completions", content=body, headers=JSON)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 1024
    assert SECRET not in answer.text
    assert answer.headers["x-should-retry"] == "false"


ROUTES = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/decisions",
    "/v1/run",
    "/v1/tasks/raw/run",
    "/v1/tasks/x/versions",
]


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_that_takes_json_stands_hostile_bodies(http: httpx.Client, path: str) -> None:
    for name, body in HOSTILE.items():
        answer = http.post(path, content=body, headers=JSON)
        assert 400 <= answer.status_code < 500, name
        assert "error" in answer.json(), name


@pytest.mark.parametrize("path", ROUTES)
def test_other_media_types_and_encodings_are_415(http: httpx.Client, path: str) -> None:
    body = b'{"model": "raw", "prompt": "x"}'
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        assert http.post(path, content=body, headers=headers).status_code == 415
    packed = http.post(path, content=gzip.compress(body), headers={**JSON, "content-encoding": "gzip"})
    assert packed.status_code == 415
    assert packed.json()["error"]["code"] == "unsupported_media_type"


def test_a_giant_body_is_413_declared_or_chunked(http: httpx.Client) -> None:
    giant = _completion(json.dumps("x" * 5_000_000))
    declared = http.post("/v1/completions", content=giant, headers=JSON)
    chunked = http.post("/v1/completions", content=iter([giant[:600_000], giant[600_000:1_200_000]]), headers=JSON)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_a_request_that_is_no_http_is_400_in_openais_shape(server: LiveServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
                 b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 10**6 + b"\r\n\r\n"):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            try:
                received = b"".join(iter(lambda: connection.recv(65536), b""))
            except ConnectionResetError:  # the server closed while most of it was still on its way
                assert len(sent) > 65536
                continue
        assert received.startswith(b"HTTP/1.1 400")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/v1/completions", 405), ("PATCH", "/health", 405), ("POST", "/v1/models", 405),
     ("GET", "/v1/tasks/../../etc/passwd", 404), ("GET", "/v1/tasks/%00", 400), ("GET", "/v1/tasks/A%0d%0a", 400),
     ("GET", "/v1/models/%ff", 404), ("GET", "/v1/tasks/raw?limit=x", 200), ("GET", "/v1/tasks?limit=x", 400),
     ("GET", "/v1/tasks?limit=0", 400), ("GET", "//v1/models", 404), ("GET", "/v1/models/", 400)],
)  # fmt: skip
def test_hostile_paths_have_openais_error_body(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    if status != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client) -> None:
    answer = http.get("/v1/tasks/raw/run")
    assert answer.json()["error"]["message"] == "This route takes POST only."
    assert answer.headers["allow"] == "POST"
    assert http.put("/v1/tasks/raw").json()["error"]["message"] == "This route takes DELETE, GET only."


def test_a_request_id_is_kept_when_it_is_harmless(http: httpx.Client) -> None:
    kept = http.get("/health", headers={"x-request-id": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    for hostile in ("a b", "a" * 129, "a;b", '"'):
        made = http.get("/health", headers={"x-request-id": hostile}).headers["x-request-id"]
        assert made.startswith("req_")
    assert int(kept.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x", "1e9", ""])
def test_a_deadline_that_makes_no_sense_is_400(http: httpx.Client, value: str) -> None:
    answer = http.post("/v1/tasks/raw/run", json={"input": "x"}, headers={"x-request-timeout": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-timeout"
