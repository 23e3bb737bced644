"""A client that leaves frees its row within a step, streaming or not."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.server import LiveServer, read_metric
from tests.support.sockets import connect, post_request, wait_for

pytestmark = pytest.mark.slow

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
    stats = lambda: server.engine.stats  # noqa: E731
    wait_for(lambda: stats().num_running == 0, "the engine is idle")
    free = stats().num_free_blocks
    connection = connect(server.url)
    connection.sendall(post_request(path, body))
    wait_for(lambda: stats().num_running > 0, "the request runs")
    if body.get("stream"):
        connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    wait_for(lambda: stats().num_running == 0, "the row is free")
    num_steps = stats().num_steps
    time.sleep(0.2)
    assert stats().num_steps <= num_steps + 1
    assert stats().num_free_blocks >= free - 2  # what prefixes keep


def test_the_number_of_generated_tokens_shows_that_work_stopped(server: LiveServer) -> None:
    before = read_metric(server, "generation_tokens_total")
    with connect(server.url) as connection:
        connection.sendall(post_request(*BODIES["a stream"]))
        connection.recv(10)
    wait_for(lambda: server.engine.stats.num_running == 0, "the row is free")
    assert read_metric(server, "generation_tokens_total") - before < 400
