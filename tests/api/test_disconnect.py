"""A client that leaves frees its row within a step, streaming or not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from app.api.protocol import DeadlineProtocol
from app.tuning.jobs.event_log import Happening
from app.tuning.jobs.job import Order
from tests.api.server import LiveServer
from tests.tuning.jobs.shop import make_spec


def _connect(server: LiveServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _send(server: LiveServer, path: str, body: dict[str, object]) -> socket.socket:
    content = json.dumps(body).encode()
    connection = _connect(server)
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


def _generated(server: LiveServer) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("softswap_generation_tokens_total "))


def test_the_number_of_generated_tokens_shows_that_work_stopped(server: LiveServer) -> None:
    before = _generated(server)
    connection = _send(server, *BODIES["a stream"])
    connection.recv(10)
    connection.close()
    _wait_for(lambda: server.services.engine.stats.num_running == 0, "the row is free")
    assert _generated(server) - before < 400


@pytest.fixture
def lost_ports(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Of the clients whose connections have ended. An answer may wait to be sent for no longer than 0.3 seconds."""
    ports: set[int] = set()
    real = DeadlineProtocol.connection_lost

    def lose(self: DeadlineProtocol, error: Exception | None) -> None:
        ports.add(self.client[1])
        real(self, error)

    monkeypatch.setattr(DeadlineProtocol, "connection_lost", lose)
    monkeypatch.setattr("app.api.protocol.SEND_TIMEOUT_S", 0.3)
    return ports


@contextmanager
def _narrow_connection(server: LiveServer, request: bytes) -> Iterator[socket.socket]:
    """One whose client has asked for something, and has room for little."""
    with _connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        connection.sendall(request)
        yield connection


@contextmanager
def _followed_job(server: LiveServer) -> Iterator[bytes]:
    """The request to follow a job that is paused and has two megabytes of events."""
    workshop = server.services.require_workshop()
    job = workshop.jobs.create(make_spec(workshop), "made")
    workshop.jobs.give(job.id, Order.PAUSE)
    with workshop._database.writing() as connection:
        workshop.events.record(connection, job.id, 1, [Happening("note", MESSAGE.decode())] * NUM_EVENTS)
    yield f"GET /v1/fine_tuning/jobs/{job.id}/events?stream=true HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    workshop.jobs.give(job.id, Order.CANCEL)
    workshop.jobs.delete(job.id)
    workshop.delete_file(job.spec.training_file)


NUM_EVENTS = 2000
MESSAGE = b"x" * 1000


def test_a_client_that_does_not_read_its_tokens_is_cut_and_no_more_are_computed(
    server: LiveServer, lost_ports: set[int]
) -> None:
    content = json.dumps({**LONG, "prompt": ["x"] * 64, "stream": True}).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    before = _generated(server)
    with _narrow_connection(server, f"POST /v1/completions HTTP/1.1\r\n{headers}".encode() + content) as connection:
        _wait_for(lambda: connection.getsockname()[1] in lost_ports, "the connection is closed")
        stats = lambda: server.services.engine.stats  # noqa: E731
        _wait_for(lambda: stats().num_running + stats().num_waiting == 0, "the rows are free")
        assert 0 < _generated(server) - before < 64 * LONG["max_tokens"]
        assert b"[DONE]" not in _read_all(connection)


def test_a_client_that_does_not_read_a_jobs_events_is_cut_and_follows_no_more(
    server: LiveServer, lost_ports: set[int]
) -> None:
    listeners = server.services.require_workshop().bell._listeners
    with _followed_job(server) as request, _narrow_connection(server, request) as connection:
        _wait_for(lambda: listeners, "it follows")
        _wait_for(lambda: not listeners, "it follows no more")
        assert connection.getsockname()[1] in lost_ports
        assert 0 < _read_all(connection).count(MESSAGE) < NUM_EVENTS


def test_a_client_that_does_not_read_a_file_is_cut(server: LiveServer, lost_ports: set[int]) -> None:
    files = server.services.require_workshop().files
    file = files.add("a.jsonl", b'{"input": "a", "target": "x"}\n' * 100_000)
    request = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    with _narrow_connection(server, request) as connection:
        _wait_for(lambda: connection.getsockname()[1] in lost_ports, "the connection is closed")
        assert 0 < len(_read_all(connection)) < file.num_bytes
    files.delete(file.id, [])


def test_a_client_that_reads_slowly_gets_everything(server: LiveServer, lost_ports: set[int]) -> None:
    read = b""
    with _followed_job(server) as request, _narrow_connection(server, request) as connection:
        began_s = time.monotonic()
        while read.count(MESSAGE) < NUM_EVENTS and (piece := connection.recv(2**15)):
            read += piece
            time.sleep(0.02)
        assert time.monotonic() - began_s > 3 * 0.3
        assert connection.getsockname()[1] not in lost_ports
    assert read.count(MESSAGE) == NUM_EVENTS


def _read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


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
