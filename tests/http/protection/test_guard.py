"""What a route checks before its handler runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI

from app.http.protection.guard import BODY_LIMIT, PROMPT_BODY, Guard, GuardedRoute
from app.http.protection.middleware import add_error_handlers
from app.http.protection.uploads import MAX_FREE_BYTES, MAX_UPLOADS
from app.telemetry import Metrics
from tests.support.server import run_application
from tests.support.sockets import connect, read_all


def build(guard: Guard, **extra: object) -> FastAPI:
    app = FastAPI()
    app.state.guard = guard
    add_error_handlers(app, Metrics())
    route = {"methods": ["POST"], "route_class_override": GuardedRoute, "openapi_extra": extra}
    app.router.add_api_route("/run", lambda: None, **route)
    return app


def test_a_body_that_never_ends_is_given_up() -> None:
    app = build(Guard(body_timeout_s=0.2))
    with run_application(app) as (url, _), connect(url) as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer


@pytest.mark.parametrize(
    ("header", "is_counted"),
    [
        (f"content-length: {MAX_FREE_BYTES}", False),
        (f"content-length: {MAX_FREE_BYTES + 1}", True),
        ("transfer-encoding: chunked", True),
    ],
)
def test_prompts_that_may_be_large_are_counted_among_the_uploads(header: str, is_counted: bool) -> None:
    guard = Guard(max_prompt_body_bytes=2 * MAX_FREE_BYTES)
    head = f"POST /run HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n".encode()
    with run_application(build(guard, **{BODY_LIMIT: PROMPT_BODY})) as (url, _), ExitStack() as stack:
        for _ in range(MAX_UPLOADS):
            stack.enter_context(connect(url)).sendall(head)
        wait_until(lambda: guard.uploads.num_uploads == (MAX_UPLOADS if is_counted else 0))
        with connect(url) as connection:
            connection.sendall(
                f"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_FREE_BYTES + 1}\r\n\r\n".encode()
            )
            if is_counted:
                assert read_all(connection).startswith(b"HTTP/1.1 503")
            else:
                wait_until(lambda: guard.uploads.num_uploads == 1)


@pytest.mark.parametrize("limit", [None, 100])
def test_a_body_of_a_prompt_may_be_as_large_as_the_guard_says(limit: int | None) -> None:
    extra = {BODY_LIMIT: PROMPT_BODY if limit is None else limit}
    with run_application(build(Guard(max_prompt_body_bytes=2000), **extra)) as (url, _):
        largest = 2000 if limit is None else limit
        assert httpx.post(f"{url}/run", content=b"x" * largest).status_code == 200
        assert httpx.post(f"{url}/run", content=b"x" * (largest + 1)).status_code == 413


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
