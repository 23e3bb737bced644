"""The edge's table of errors: what each becomes as a status, and OpenAI's body for all of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response

from app import errors
from app.http.protection.patterns import PATTERN_TO_WORDS
from app.telemetry import Metrics

MAX_MESSAGE_CHARS = 300
MAX_PARAM_CHARS = 100
logger = logging.getLogger(__name__)

ERROR_TO_STATUS: dict[type[errors.SoftswapError], int] = {
    errors.InvalidInput: 400,
    errors.NotFound: 404,
    errors.Conflict: 412,
    errors.GateFailed: 412,
    errors.CorruptPrompt: 500,
    errors.CorruptState: 500,
    errors.RegistryUnavailable: 503,
    errors.Overloaded: 503,
    errors.Draining: 503,
    errors.DeadlineExceeded: 504,
    errors.NumericalError: 500,
    errors.OutOfMemory: 500,
    errors.TuningUnavailable: 503,
    errors.EngineDead: 503,
    errors.SoftswapError: 500,
}
"""The first class of an error's own line of ancestors that stands here decides."""

STATUS_TO_TYPE_CODE: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_value"),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("timeout_error", "body_timeout"),
    412: ("conflict_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    500: ("server_error", "internal_error"),
    503: ("server_overloaded", "unavailable"),
    504: ("timeout_error", "deadline_exceeded"),
}

# The SDK retries 408, 409, 429 and every 5xx unless this header forbids it (openai `_base_client.py`).
STATUS_TO_SHOULD_RETRY: dict[int, bool] = {500: False, 503: True, 504: False}


class ErrorObject(BaseModel):
    """What went wrong; `param` names the field at fault, dotted where nested."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error body, on every path."""

    error: ErrorObject


@dataclass(frozen=True)
class Failure:
    """A refusal on its way to the wire."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, errors.SoftswapError):
            return _of_own(error)
        if isinstance(error, StarletteHTTPException):
            return _of_http(error)
        return cls(500, "The server had an error while answering. The log has it under this request's x-request-id.")

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        kind, code = STATUS_TO_TYPE_CODE.get(self.status, ("invalid_request_error", "error"))
        return {
            "error": {
                "message": _printable(self.message, MAX_MESSAGE_CHARS),
                "type": kind,
                "param": None if self.param is None else _printable(self.param, MAX_PARAM_CHARS),
                "code": self.code or code,
            }
        }

    def response(self) -> Response:
        headers = dict(self.headers)
        should_retry = STATUS_TO_SHOULD_RETRY.get(self.status, False if self.status < 500 else None)
        if should_retry is not None:
            headers.setdefault("x-should-retry", "true" if should_retry else "false")
        return Response(json.dumps(self.body), self.status, headers, "application/json")


class Refused(HTTPException):
    """A refusal that belongs to HTTP itself: key, method, body size, media type."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Turn every error into OpenAI's body."""

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, errors.Overloaded | errors.Draining):
            metrics.observe_rejected(error.code)
        failure = Failure.of(error)
        if failure.status == 405:
            allowed = ", ".join(sorted(_allowed_methods(app, request.scope["path"])))
            failure = Failure(405, f"This route takes {allowed} only.", headers={"allow": allowed})
        return failure.response()

    async def answer_validation(_: Request, error: Exception) -> Response:
        problem = cast(RequestValidationError, error)
        return explain(problem.errors(), problem.body).response()

    app.add_exception_handler(errors.SoftswapError, answer)
    app.add_exception_handler(StarletteHTTPException, answer)
    app.add_exception_handler(RequestValidationError, answer_validation)


def _allowed_methods(app: FastAPI, path: str) -> set[str]:
    """Of every route with this path: the first one that matched, which refused, knows only its own."""
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    return {
        method
        for route in routes
        if isinstance(route, APIRoute) and route.path_regex.match(path)
        for method in route.methods or ()
    }


def _of_own(error: errors.SoftswapError) -> Failure:
    status = next(ERROR_TO_STATUS[kind] for kind in type(error).__mro__ if kind in ERROR_TO_STATUS)
    headers: dict[str, str] = {}
    if isinstance(error, errors.Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, errors.Draining):
        headers.update({"connection": "close", "retry-after": "1"})
    if isinstance(error, errors.TuningUnavailable | errors.RegistryUnavailable):
        headers["x-should-retry"] = "false"
    if status >= 500 and not headers:
        logger.error("%s: %s", type(error).__name__, error.message)
    return Failure(status, error.message, error.code, error.param, headers)


STATUS_TO_MESSAGE = {
    404: "There is no such route. GET /docs shows all of them.",
}


def _of_http(error: StarletteHTTPException) -> Failure:
    if isinstance(error, Refused):
        return Failure(error.status_code, error.detail, error.code, None, error.headers or {})
    message = STATUS_TO_MESSAGE.get(error.status_code, "The request could not be read.")
    return Failure(error.status_code, message, None, None, error.headers or {})


def explain(problems: Iterable[Mapping[str, Any]], body: Any) -> Failure:
    """The one problem of a request that helps most, as a 400 that names the field and shows no value.

    Args:
        problems: pydantic's list, locations starting with "body", "path", "query" or "header".
        body: what was validated, to tell field names from pydantic's own names of union members.
    """
    located = [(_field_path(problem["loc"], body), problem) for problem in problems]
    path, problem = max(located, key=lambda item: _helpfulness(*item))
    param = ".".join(map(str, path)) or None
    if problem["type"] == "extra_forbidden":
        return Failure(400, f"{param} is not a field of this request", "unknown_parameter", param)
    if problem["type"] == "none_required":
        return Failure(400, f"{param} is not supported by this server; leave it out", "unsupported_parameter", param)
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    complaint = _name_all_types(each for where, each in located if where == path) or _complain(problem)
    return Failure(400, f"{param or 'the body'} {complaint}", code, param)


def _complain(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return PATTERN_TO_WORDS.get(problem["ctx"]["pattern"], "is not valid")
    return errors.complain(problem)


def _name_all_types(problems: Iterable[Mapping[str, Any]]) -> str:
    """Of a field that takes several types and got another: every one it takes. Empty where something else is wrong."""
    kinds = [str(problem["type"]) for problem in problems]
    if not all(kind in errors.TYPE_TO_NOUN for kind in kinds):
        return ""
    *others, last = dict.fromkeys(errors.TYPE_TO_NOUN[kind] for kind in kinds)
    return f"must be {', '.join(others)} or {last}" if others else f"must be {last}"


def _helpfulness(path: Sequence[str | int], problem: Mapping[str, Any]) -> tuple[bool, int]:
    """Of a union's many complaints, one that got past the type check, then the deepest, says what was meant."""
    is_type_mismatch = str(problem["type"]).endswith("_type")
    return not is_type_mismatch, len(path)


def _field_path(location: Sequence[str | int], body: Any) -> list[str | int]:
    """Drop from pydantic's location what is no part of the request: its first word and names of union members."""
    source, *rest = location
    if source != "body":
        return list(rest)
    path: list[str | int] = ["items"] if isinstance(body, list) and rest else []
    value = body
    for step in rest:
        is_inside, inner = _step_into(value, step)
        if is_inside or (isinstance(value, dict) and step == rest[-1]):
            path.append(step)
        value = inner if is_inside else value
    return path


def _step_into(value: Any, step: str | int) -> tuple[bool, Any]:
    if isinstance(value, dict) and step in value:
        return True, value[step]
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return True, value[step]
    return False, None


def _printable(text: str, limit: int) -> str:
    """A caller may have named a field itself: what is not printable ASCII is escaped, what is long is cut."""
    escaped = "".join(char if char.isascii() and char.isprintable() else ascii(char)[1:-1] for char in text)
    return escaped if len(escaped) <= limit else f"{escaped[: limit - 3]}..."


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events that end with `[DONE]`.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "description": "One event; its data is JSON, or `[DONE]`.",
                    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
                    "required": ["data"],
                }
            }
        },
    }
}


def describe_statuses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for errors a route may answer with."""
    texts = {
        400: "The request is wrong; `param` names the field.",
        401: "No API key, or one this server does not know.",
        404: "No such task, version or alias.",
        408: "The body did not arrive in time.",
        412: "The task changed since it was read (`conflict`), or a version does not pass the gate (`gate_failed`).",
        413: "The body is too large.",
        415: "The body's media type or encoding is not one this route takes.",
        500: "A fault of the server.",
        503: "Overloaded, starting or stopping; `Retry-After` says when to come back.",
        504: "The request's deadline passed.",
    }
    return {status: {"model": ErrorBody, "description": texts[status]} for status in statuses}
