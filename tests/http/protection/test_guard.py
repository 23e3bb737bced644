"""What a route checks before its handler runs."""

from __future__ import annotations

from fastapi import FastAPI

from app.http.protection.guard import Guard, GuardedRoute
from app.http.protection.middleware import add_error_handlers
from app.telemetry import Metrics
from tests.support.server import run_application
from tests.support.sockets import connect, read_all


def test_a_body_that_never_ends_is_given_up() -> None:
    app = FastAPI()
    app.state.guard = Guard(body_timeout_s=0.2)
    add_error_handlers(app, Metrics())
    app.router.add_api_route("/run", lambda: None, methods=["POST"], route_class_override=GuardedRoute)
    with run_application(app) as (url, _), connect(url) as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer
