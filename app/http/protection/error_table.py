"""The status and headers that each error becomes, and OpenAI's body for all of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from app import errors

MAX_MESSAGE_CHARS = 300
MAX_PARAM_CHARS = 100
logger = logging.getLogger(__name__)

ERROR_TO_STATUS: dict[type[errors.SoftswapError], int] = {
    errors.InvalidInput: 400,
    errors.NotFound: 404,
    errors.Conflict: 412,
    errors.GateFailed: 412,
    errors.RegistryUnavailable: 503,
    errors.TuningUnavailable: 503,
    errors.Overloaded: 503,
    errors.Draining: 503,
    errors.EngineDead: 503,
    errors.DeadlineExceeded: 504,
    errors.SoftswapError: 500,  # the rest: corrupt data, numerical errors, no memory
}
"""The first class in an error's `__mro__` that is listed decides."""

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
    """What went wrong; `param` names the field at fault, dotted if nested."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error body, on every path."""

    error: ErrorObject


@dataclass(frozen=True)
class Failure:
    """An error response before it is written."""

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
    """Raised for what belongs to HTTP itself: key, method, body size, media type."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code


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
    message = error.pointing_to("GET /v1/models lists them") if isinstance(error, errors.NoSuchTask) else error.message
    return Failure(status, message, error.code, error.param, headers)


def _of_http(error: StarletteHTTPException) -> Failure:
    if isinstance(error, Refused):
        return Failure(error.status_code, error.detail, error.code, headers=error.headers or {})
    return Failure(error.status_code, "The request could not be read.", headers=error.headers or {})


def _printable(text: str, limit: int) -> str:
    """Callers may name fields, so what is not printable ASCII is escaped, and what is long is cut."""
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
    """OpenAPI's entries for the errors that a route may answer with."""
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
