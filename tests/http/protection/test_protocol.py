"""Peers that keep the server waiting are cut off: by headers that never end, or by not reading their answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import ClassVar

import pytest
from fastapi import FastAPI

from app.http.protection.protocol import DeadlineProtocol
from app.jobs.event_log import NewEvent
from app.jobs.job import Order
from app.model.backbone import Backbone
from tests.support.server import LiveServer, make_settings, read_metric, run_application, run_server
from tests.support.sockets import connect, post_request, read_all, wait_for
from tests.support.tuning_jobs import make_spec

pytestmark = pytest.mark.slow

SEND_TIMEOUT_S = 0.3


class ImpatientProtocol(DeadlineProtocol):
    """Waits a moment for a peer to read, and remembers the ports of the clients whose connections have ended."""

    send_timeout_s = SEND_TIMEOUT_S
    lost_ports: ClassVar[set[int]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.lost_ports.discard(self.client[1])

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_ports.add(self.client[1])
        super().connection_lost(exc)


@pytest.fixture(scope="module")
def impatient(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone, protocol=ImpatientProtocol) as live:
        yield live


def is_lost(connection: socket.socket) -> bool:
    return connection.getsockname()[1] in ImpatientProtocol.lost_ports


def test_headers_that_never_end_are_given_up() -> None:
    class Protocol(DeadlineProtocol):
        header_timeout_s = 0.2

    with run_application(FastAPI(), protocol=Protocol) as (url, _):
        for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"):
            with connect(url) as connection:
                connection.sendall(sent)
                read_all(connection)


NUM_EVENTS = 2000
MESSAGE = b"x" * 1000
NUM_LINES = 100_000
LINE = b'{"input": "a", "target": "x"}\n'


@contextmanager
def _narrow_connection(server: LiveServer, request: bytes) -> Iterator[socket.socket]:
    """A connection whose client has sent a request and has room for little of the answer."""
    with connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        connection.sendall(request)
        yield connection


@contextmanager
def _followed_job(server: LiveServer) -> Iterator[bytes]:
    """The request to follow a job that is paused and has two megabytes of events."""
    tuning = server.tuning
    job = tuning.jobs.create(asdict(make_spec(tuning)), "made")
    tuning.jobs.give(job.id, Order.PAUSE)
    with tuning.stores.database.writing() as connection:
        tuning.events.record(connection, job.id, 1, [NewEvent("note", MESSAGE.decode())] * NUM_EVENTS)
    yield f"GET /v1/fine_tuning/jobs/{job.id}/events?stream=true HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    tuning.jobs.give(job.id, Order.CANCEL)
    tuning.jobs.delete(job.id)
    tuning.delete_file(job.spec["training_file"])


@contextmanager
def _kept_file(server: LiveServer, num_lines: int = NUM_LINES) -> Iterator[bytes]:
    """The request for a file of `num_lines` lines."""
    files = server.tuning.files
    file = files.add("a.jsonl", LINE * num_lines)
    yield f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    files.delete(file.id, [])


def test_a_client_that_does_not_read_its_tokens_is_cut_and_no_more_are_computed(impatient: LiveServer) -> None:
    sampling = {"max_tokens": 480, "ignore_eos": True, "temperature": 1.0, "seed": 1}
    body = {"model": "tiny-llama", "prompt": ["x"] * 64, "stream": True, **sampling}
    before = read_metric(impatient, "generation_tokens_total")
    with _narrow_connection(impatient, post_request("/v1/completions", body)) as connection:
        wait_for(lambda: is_lost(connection), "the connection is closed")
        stats = lambda: impatient.engine.stats  # noqa: E731
        wait_for(lambda: stats().num_running + stats().num_waiting == 0, "the rows are free")
        assert 0 < read_metric(impatient, "generation_tokens_total") - before < 64 * 480
        assert b"[DONE]" not in read_all(connection)


def test_a_client_that_does_not_read_a_jobs_events_is_cut_and_follows_no_more(impatient: LiveServer) -> None:
    notifier = impatient.tuning.notifier
    with _followed_job(impatient) as request, _narrow_connection(impatient, request) as connection:
        wait_for(lambda: notifier.num_listeners, "it follows")
        wait_for(lambda: not notifier.num_listeners, "it follows no more")
        assert is_lost(connection)
        assert 0 < read_all(connection).count(MESSAGE) < NUM_EVENTS


def test_a_client_that_does_not_read_a_file_is_cut(impatient: LiveServer) -> None:
    with _kept_file(impatient) as request, _narrow_connection(impatient, request) as connection:
        wait_for(lambda: is_lost(connection), "the connection is closed")
        assert 0 < read_all(connection).count(b"\n") < NUM_LINES


def test_a_client_that_does_not_read_is_cut_however_little_waits_to_be_sent(impatient: LiveServer) -> None:
    """Of some of these sizes, all but less than 64 KiB goes out at once."""
    with ExitStack() as stack:
        for num_lines in range(1000, 16_000, 1000):
            request = stack.enter_context(_kept_file(impatient, num_lines))
            request = request.replace(b"host: x", b"host: x\r\nconnection: close")
            connection = stack.enter_context(_narrow_connection(impatient, request))
            wait_for(partial(is_lost, connection), "the connection is closed")


def test_a_client_that_reads_slowly_gets_all_of_a_jobs_events(impatient: LiveServer) -> None:
    with _followed_job(impatient) as request, _narrow_connection(impatient, request) as connection:
        _read_slowly(connection, MESSAGE, NUM_EVENTS)
        assert not is_lost(connection)


def test_a_client_that_reads_slowly_gets_all_of_a_file(impatient: LiveServer) -> None:
    with _kept_file(impatient) as request, _narrow_connection(impatient, request) as connection:
        _read_slowly(connection, LINE, NUM_LINES)
        assert not is_lost(connection)


def _read_slowly(connection: socket.socket, piece: bytes, num_pieces: int) -> None:
    """All of the pieces, in several times the seconds after which a client that does not read is cut off."""
    began_s, read = time.monotonic(), b""
    while read.count(piece) < num_pieces and (some := connection.recv(2**15)):
        read += some
        time.sleep(0.02)
    assert read.count(piece) == num_pieces
    assert time.monotonic() - began_s > 3 * SEND_TIMEOUT_S
