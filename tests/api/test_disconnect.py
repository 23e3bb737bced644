"""A client that leaves frees its row within a step, streaming or not."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from tests.api.server import LiveServer


def _send(server: LiveServer, path: str, body: dict[str, object]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=20)
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(f"POST {path} HTTP/1.1\r\n{headers}".encode() + content)
    return connection


def _wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


LONG = {"model": "tiny-llama", "max_tokens": 480, "ignore_eos": True, "temperature": 1.0, "seed": 1}
BODIES = {
    "a stream": ("/v1/completions", {**LONG, "prompt": "x", "stream": True}),
    "an answer in one piece": ("/v1/completions", {**LONG, "prompt": "x"}),
    "four streams in one": ("/v1/completions", {**LONG, "prompt": ["x", "y"], "n": 2, "stream": True}),
    "a chat": ("/v1/chat/completions", {**LONG, "messages": [{"role": "user", "content": "x"}], "stream": True}),
    "a run": ("/v1/tasks/headline/run", {"inputs": ["x", "y"], "max_tokens": 400, "ignore_eos": True}),
}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES.keys())
def test_a_client_that_leaves_frees_its_row_within_a_step(
    server: LiveServer, path: str, body: dict[str, object]
) -> None:
    stats = lambda: server.services.engine.stats  # noqa: E731
    _wait_for(lambda: stats().num_running == 0, "the engine is idle")
    free = stats().num_free_blocks
    connection = _send(server, path, body)
    _wait_for(lambda: stats().num_running > 0, "the request runs")
    if body.get("stream"):
        connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    _wait_for(lambda: stats().num_running == 0, "the row is free")
    num_steps = stats().num_steps
    time.sleep(0.2)
    assert stats().num_steps <= num_steps + 1
    assert stats().num_free_blocks >= free - 2  # what prefixes keep


def test_the_number_of_generated_tokens_shows_that_work_stopped(server: LiveServer) -> None:
    def generated() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("softswap_generation_tokens_total "))

    before = generated()
    connection = _send(server, *BODIES["a stream"])
    connection.recv(10)
    connection.close()
    _wait_for(lambda: server.services.engine.stats.num_running == 0, "the row is free")
    assert generated() - before < 400


def test_a_body_that_never_ends_is_given_up(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.guard.BODY_TIMEOUT_S", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/run HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n["
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


def test_headers_that_never_end_are_given_up(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.protocol.HEADER_TIMEOUT_S", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            while connection.recv(65536):
                pass
