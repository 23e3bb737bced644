"""GuardedRoute: what every route checks before its handler runs, keys first, and how long the handler may run."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import params
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.protection.error_table import Refused
from app.http.protection.uploads import MAX_FREE_BYTES, UploadLimits
from app.http.protection.validation import parse_json

MAX_BODY_BYTES: Final = 2**20
PUBLIC_PATHS: Final = frozenset({"/health", "/ready"})
PAGES: Final = frozenset({"/docs", "/openapi.json"})
SLOWEST_BYTES_PER_S: Final = 2**20
"""Routes that take larger bodies wait longer for them, at this pace."""
BODY_LIMIT: Final = "x-max-body-bytes"
"""Key of a route's `openapi_extra` that replaces MAX_BODY_BYTES; it also shows in the OpenAPI document."""
PROMPT_BODY: Final = "prompt"
"""As BODY_LIMIT: `Guard.max_prompt_body_bytes`, which depends on the backbone."""
UPLOADS_LIMIT: Final = "x-max-uploads"
"""Key of a route's `openapi_extra`: its bodies are so large that UploadLimits bounds how many are held at a time."""


class ApiKeys:
    """The keys a server was started with, as digests. With none at all every request passes.

    Digests of equal length are compared in constant time, all of them on every request, so that the time reveals
    neither how much of a key is right nor which key it is.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in dict.fromkeys(keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Headers, *, is_page: bool = False) -> str:
        """The cache salt of the request's key; empty on a server without keys.

        Computed text is shared only among requests of one key, because the time an answer takes would tell one caller
        what another has asked.

        Raises Refused with status 401 unless `Authorization: Bearer KEY` carries one of the keys.

        Args:
            is_page: also take the key as the password of Basic authentication, the only one browsers ask people for.
                Only for pages that change nothing: browsers send Basic credentials on other sites' behalf too.
        """
        if not self._digests:
            return ""
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        is_basic = is_page and scheme.lower() == "basic"
        candidate = _digest(_read_password(credentials) if is_basic else credentials.strip())
        matches = [hmac.compare_digest(candidate, digest) for digest in self._digests]
        if not (is_basic or scheme.lower() == "bearer") or not any(matches):
            challenge = 'Basic realm="softswap: any name, the API key as password"' if is_page else "Bearer"
            raise Refused(
                401,
                "This server asks for an API key: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )
        return candidate.hex()


def _read_password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, or not text inside
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Guard:
    """What the routes of one application check requests against. They find it as `application.state.guard`.

    Attributes:
        max_prompt_body_bytes: of a body that holds a prompt.
        body_timeout_s: time that a body may take to arrive.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    max_prompt_body_bytes: int = MAX_BODY_BYTES
    uploads: UploadLimits = field(default_factory=UploadLimits)
    body_timeout_s: float = 30.0


class ClientLeftError(ConnectionAbortedError):
    """The client closed its connection before the answer was complete."""


class GuardedRoute(APIRoute):
    """Checks the key, reads the body within bounds, and cancels the handler when the client leaves.

    What is checked depends on the route that matched, never on the path as the client wrote it, so no spelling of a
    path gets around a check. `request.state.cache_salt` is the salt of the request's key.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard: Guard = scope["app"].state.guard
        headers = Headers(scope=scope)
        salt = "" if self.path in PUBLIC_PATHS else guard.keys.check(headers, is_page=self.path in PAGES)
        scope.setdefault("state", {})["cache_salt"] = salt
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # which answers 405
            return
        self._check_media_type(headers)
        with self._hold_upload(guard.uploads, headers):
            body = await _read_body(headers, receive, self._max_body_bytes(guard), guard.body_timeout_s)
            await _run_while_connected(super().handle, scope, body, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle_strictly

    def _max_body_bytes(self, guard: Guard) -> int:
        limit = (self.openapi_extra or {}).get(BODY_LIMIT, MAX_BODY_BYTES)
        return guard.max_prompt_body_bytes if limit == PROMPT_BODY else int(limit)

    def _hold_upload(self, uploads: UploadLimits, headers: Headers) -> AbstractContextManager[None]:
        """Raises Overloaded when it is entered, before a byte of the body is kept."""
        extra = self.openapi_extra or {}
        is_large = extra.get(BODY_LIMIT) == PROMPT_BODY and _declared_bytes(headers) > MAX_FREE_BYTES
        return uploads.hold() if is_large or UPLOADS_LIMIT in extra else nullcontext()

    def _check_media_type(self, headers: Headers) -> None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Compressed bodies are not taken; send the body without Content-Encoding")
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, params.Form)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if takes_json and media_type != "application/json":
            raise Refused(415, "Send the body as Content-Type: application/json (curl: --json)")


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


def _declared_bytes(headers: Headers) -> float:
    """How long the body says that it is; one that comes in chunks may be of any length."""
    declared = headers.get("content-length", "0" if "transfer-encoding" not in headers else "")
    return int(declared) if declared.isdigit() else math.inf


async def _read_body(headers: Headers, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises Refused with 413 or 408, or ClientLeftError."""
    declared = headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > max_bytes:
        raise _too_large(max_bytes)
    timeout_s += max_bytes / SLOWEST_BYTES_PER_S
    try:
        async with asyncio.timeout(timeout_s):
            return await _receive_all(receive, max_bytes)
    except TimeoutError:
        message = f"The body did not arrive within {timeout_s:.0f} seconds"
        raise Refused(408, message, headers={"connection": "close"}) from None


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"The body may have at most {max_bytes} bytes", headers={"connection": "close"})


async def _run_while_connected(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the handler, and cancel it when the client leaves, which Starlette watches for during streams only."""
    has_left = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if messages:
            return messages.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    handler = asyncio.ensure_future(app(scope, replay, send))
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not handler.done():
            raise ClientLeftError
        handler.result()
    finally:
        has_left.set()
        unfinished = {task for task in (handler, watcher) if not task.done()}
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
