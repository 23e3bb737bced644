"""A client that leaves frees its row within a step, streaming or not."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from fastapi import FastAPI

from app.http.protection.error_table import add_error_handlers
from app.http.protection.guard import Guard, GuardedRoute
from app.http.protection.protocol import DeadlineProtocol
from app.jobs.event_log import NewEvent
from app.jobs.job import Order
from app.telemetry import Metrics
from tests.support.server import LiveServer, run_application
from tests.support.tuning_jobs import make_spec


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _send(server: LiveServer, path: str, body: dict[str, object]) -> socket.socket:
    content = json.dumps(body).encode()
    connection = _connect(server.url)
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
    monkeypatch.setattr("app.http.protection.protocol.SEND_TIMEOUT_S", 0.3)
    return ports


def _wait_until_lost(connection: socket.socket, lost_ports: set[int]) -> None:
    _wait_for(lambda: connection.getsockname()[1] in lost_ports, "the connection is closed")


NUM_EVENTS = 2000
MESSAGE = b"x" * 1000
NUM_LINES = 100_000
LINE = b'{"input": "a", "target": "x"}\n'


@contextmanager
def _narrow_connection(server: LiveServer, request: bytes) -> Iterator[socket.socket]:
    """One whose client has asked for something, and has room for little."""
    with _connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        connection.sendall(request)
        yield connection


@contextmanager
def _followed_job(server: LiveServer) -> Iterator[bytes]:
    """The request to follow a job that is paused and has two megabytes of events."""
    tuning = server.services.require_tuning()
    job = tuning.jobs.create(make_spec(tuning), "made")
    tuning.jobs.give(job.id, Order.PAUSE)
    with tuning._database.writing() as connection:
        tuning.events.record(connection, job.id, 1, [NewEvent("note", MESSAGE.decode())] * NUM_EVENTS)
    yield f"GET /v1/fine_tuning/jobs/{job.id}/events?stream=true HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    tuning.jobs.give(job.id, Order.CANCEL)
    tuning.jobs.delete(job.id)
    tuning.delete_file(job.spec.training_file)


@contextmanager
def _kept_file(server: LiveServer, num_lines: int = NUM_LINES) -> Iterator[bytes]:
    """The request for a file of so many lines."""
    files = server.services.require_tuning().files
    file = files.add("a.jsonl", LINE * num_lines)
    yield f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    files.delete(file.id, [])


def test_a_client_that_does_not_read_its_tokens_is_cut_and_no_more_are_computed(
    server: LiveServer, lost_ports: set[int]
) -> None:
    content = json.dumps({**LONG, "prompt": ["x"] * 64, "stream": True}).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    before = _generated(server)
    with _narrow_connection(server, f"POST /v1/completions HTTP/1.1\r\n{headers}".encode() + content) as connection:
        _wait_until_lost(connection, lost_ports)
        stats = lambda: server.services.engine.stats  # noqa: E731
        _wait_for(lambda: stats().num_running + stats().num_waiting == 0, "the rows are free")
        assert 0 < _generated(server) - before < 64 * LONG["max_tokens"]
        assert b"[DONE]" not in _read_all(connection)


def test_a_client_that_does_not_read_a_jobs_events_is_cut_and_follows_no_more(
    server: LiveServer, lost_ports: set[int]
) -> None:
    listeners = server.services.require_tuning().notifier._listeners
    with _followed_job(server) as request, _narrow_connection(server, request) as connection:
        _wait_for(lambda: listeners, "it follows")
        _wait_for(lambda: not listeners, "it follows no more")
        assert connection.getsockname()[1] in lost_ports
        assert 0 < _read_all(connection).count(MESSAGE) < NUM_EVENTS


def test_a_client_that_does_not_read_a_file_is_cut(server: LiveServer, lost_ports: set[int]) -> None:
    with _kept_file(server) as request, _narrow_connection(server, request) as connection:
        _wait_until_lost(connection, lost_ports)
        assert 0 < _read_all(connection).count(b"\n") < NUM_LINES


def test_a_client_that_does_not_read_is_cut_however_little_waits_to_be_sent(
    server: LiveServer, lost_ports: set[int]
) -> None:
    """Of some of these sizes, all but less than 64 KiB goes out at once."""
    with ExitStack() as stack:
        for num_lines in range(1000, 16_000, 1000):
            request = stack.enter_context(_kept_file(server, num_lines))
            request = request.replace(b"host: x", b"host: x\r\nconnection: close")
            connection = stack.enter_context(_narrow_connection(server, request))
            _wait_until_lost(connection, lost_ports)


def test_a_client_that_reads_slowly_gets_all_of_a_jobs_events(server: LiveServer, lost_ports: set[int]) -> None:
    with _followed_job(server) as request, _narrow_connection(server, request) as connection:
        _read_slowly(connection, MESSAGE, NUM_EVENTS)
        assert connection.getsockname()[1] not in lost_ports


def test_a_client_that_reads_slowly_gets_all_of_a_file(server: LiveServer, lost_ports: set[int]) -> None:
    with _kept_file(server) as request, _narrow_connection(server, request) as connection:
        _read_slowly(connection, LINE, NUM_LINES)
        assert connection.getsockname()[1] not in lost_ports


def _read_slowly(connection: socket.socket, piece: bytes, num_pieces: int) -> None:
    """All of so many pieces, in several times the seconds after which a client that does not read is cut."""
    began_s, read = time.monotonic(), b""
    while read.count(piece) < num_pieces and (some := connection.recv(2**15)):
        read += some
        time.sleep(0.02)
    assert read.count(piece) == num_pieces
    assert time.monotonic() - began_s > 3 * 0.3


def _read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_that_never_ends_is_given_up() -> None:
    app = FastAPI()
    app.state.guard = Guard(body_timeout_s=0.2)
    add_error_handlers(app, Metrics())
    app.router.add_api_route("/run", lambda: None, methods=["POST"], route_class_override=GuardedRoute)
    with run_application(app) as (url, _), _connect(url) as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
        answer = _read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


def test_headers_that_never_end_are_given_up(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.protection.protocol.HEADER_TIMEOUT_S", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            while connection.recv(65536):
                pass
