"""RemoteServer against a server that says what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.cli.places.remote_server import RemoteServer, Unreachable
from app.errors import InvalidInput, SoftswapError

Answer = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def stream_of(*events: object) -> bytes:
    return b"".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in events)


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://", "http://a\x00b", ""])
def test_an_address_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="http://"):
        RemoteServer(url, None)


def test_the_key_and_the_body_arrive() -> None:
    seen = []

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        seen.append((request.path, request.headers.get("authorization")))
        return 200, {}, b'{"a": 1}'

    with serving(answer) as url:
        assert RemoteServer(f"{url}/v1/", "key").call("PUT", "/v1/tasks/a%2Fb?x=1", {"b": 2}) == {"a": 1}
        RemoteServer(url, None).call("GET", "/health")
    assert seen == [("/v1/tasks/a%2Fb?x=1", "Bearer key"), ("/health", None)]


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "message"),
    [
        (400, {}, b'{"error": {"message": "no such task"}}', SoftswapError, "no such task"),
        (502, {}, b"<html>", SoftswapError, "the server answered with status 502"),
        (503, {"x-should-retry": "true"}, b'{"error": {"message": "draining"}}', Unreachable, "draining"),
        (200, {}, b"<html>", SoftswapError, "the answer is not JSON; is this the address of a softswap server?"),
    ],
)
def test_a_refusal_is_said_in_the_servers_words(
    status: int, headers: dict[str, str], body: bytes, error: type[SoftswapError], message: str
) -> None:
    with serving(lambda _: (status, headers, body)) as url, pytest.raises(SoftswapError) as refused:
        RemoteServer(url, None).call("GET", "/v1/tasks")
    assert (type(refused.value), refused.value.message) == (error, message)


def test_events_end_at_line_feeds_only() -> None:
    """JSON may hold characters that Python's splitlines, and httpx's iter_lines, take for the end of a line."""
    texts = ["a\u2028b", "c\x85d", "é"]
    with serving(lambda _: (200, {}, stream_of(*({"text": text} for text in texts)) + DONE)) as url:
        assert [event["text"] for event in RemoteServer(url, None).stream("/v1/runs", {})] == texts


def test_an_error_within_a_stream_is_raised() -> None:
    body = stream_of({"text": "a"}, {"error": {"message": "it broke"}})
    with serving(lambda _: (200, {}, body)) as url:
        events = RemoteServer(url, None).stream("/v1/runs", {})
        assert next(events) == {"text": "a"}
        with pytest.raises(SoftswapError, match="it broke"):
            next(events)


def test_a_broken_stream_is_followed_from_its_last_event() -> None:
    events = [{"id": f"e{number}"} for number in range(5)]

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        """Two events for each connection."""
        last = request.headers.get("last-event-id")
        start = 0 if last is None else 1 + [event["id"] for event in events].index(last)
        return 200, {}, stream_of(*events[start : start + 2]) + (DONE if start + 2 > len(events) else b"")

    with serving(answer) as url:
        assert list(RemoteServer(url, None, retry_s=0).follow("/events")) == events


def test_a_server_that_stays_away_is_given_up() -> None:
    answers = iter([(200, {}, stream_of({"id": "e0"}))])
    with serving(lambda _: next(answers, (503, {"x-should-retry": "true"}, b"{}"))) as url:
        events = RemoteServer(url, None, retry_s=0, max_away_s=0.05).follow("/events")
        assert next(events) == {"id": "e0"}
        with pytest.raises(Unreachable):
            next(events)
