"""What surrounds every route: request ids, timing, metrics, the access log, and a response for every error."""

from __future__ import annotations

import logging
import re
import time
import uuid

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.http.protection.error_table import Failure, Refused
from app.http.protection.guard import ClientLeftError
from app.http.protection.unrouted import refuse_method, refuse_path
from app.http.protection.validation import explain
from app.telemetry import Metrics, request_id

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("softswap.access")
CLIENT_CLOSED = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})


class TelemetryMiddleware:
    """ASGI middleware around everything else. A caller's `x-request-id` is kept if its characters are harmless."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = _choose_request_id(Headers(scope=scope))
        token = request_id.set(identifier)
        response = _TrackedResponse(send, identifier)
        try:
            await self._app(scope, receive, response.send)
        except ClientLeftError:
            response.status = CLIENT_CLOSED
            self._metrics.clients_left.inc()
        except Exception as error:
            logger.exception("unexpected error")
            if not response.is_started:
                await Failure.of(error).response()(scope, receive, response.send)
        finally:
            self._record(scope, response)
            request_id.reset(token)

    def _record(self, scope: Scope, response: _TrackedResponse) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.observe_http(method=method, route=route, status=response.status, duration_s=response.elapsed_s)
        level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
        access_logger.log(level, "%s %s %d %.1f ms", method, route, response.status, 1000 * response.elapsed_s)


class _TrackedResponse:
    """Watches one response as it is sent, and adds our headers."""

    def __init__(self, send: Send, identifier: str) -> None:
        self._send = send
        self._identifier = identifier
        self._began = time.perf_counter()
        self.status = 500
        self.is_started = False

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._identifier
            headers["openai-processing-ms"] = str(int(1000 * self.elapsed_s))
            headers["x-content-type-options"] = "nosniff"
        await self._send(message)


def _choose_request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error with OpenAI's body."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, errors.Overloaded | errors.Draining):
            metrics.rejections.labels(error.code).inc()
        return _describe(app, request, error).response()

    async def answer_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return explain(error.errors(), error.body).response()

    app.add_exception_handler(errors.SoftswapError, answer)
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(RequestValidationError, answer_invalid)


def _describe(app: FastAPI, request: Request, error: Exception) -> Failure:
    """Starlette's own refusals know neither the routes nor their methods."""
    if isinstance(error, HTTPException) and not isinstance(error, Refused):
        if error.status_code == 404:
            return refuse_path(app, request.scope["path"])
        if error.status_code == 405:
            return refuse_method(app, request.scope["path"])
    return Failure.of(error)
