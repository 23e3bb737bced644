"""RemoteServer: a running softswap over HTTP, with nothing but the standard library."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from app.errors import InvalidInput, SoftswapError

TIMEOUT_S = 600.0
RETRY_S = 1.0
MAX_AWAY_S = 120.0
DONE = b"data: [DONE]"


class AwayError(SoftswapError):
    """The server does not answer now, but may in a moment."""


class RemoteServer:
    """Args:
        url: where the server listens; a `/v1` at its end may stand or not.

    Every method raises SoftswapError with the server's own words, or that it cannot be reached.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise InvalidInput("--url must begin with http:// or https://", param="url")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request with JSON in and out."""
        data = None if body is None else json.dumps(body).encode()
        with self._open(method, path, data, {"content-type": "application/json"}) as answer:
            return json.load(answer)

    def fetch(self, method: str, path: str, body: Any = None) -> bytes:
        """One request with JSON in and anything out."""
        data = None if body is None else json.dumps(body).encode()
        with self._open(method, path, data, {"content-type": "application/json"}) as answer:
            content: bytes = answer.read()
            return content

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer."""
        with self._open("POST", path, json.dumps(body).encode(), {"content-type": "application/json"}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _read_item(line)

    def follow(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a stream that has ids, none missing and none twice, though the connection break in between.

        A server that was there once may be away for MAX_AWAY_S.
        """
        last_id, seen_s = "", -math.inf
        while True:
            try:
                for item in self._events_behind(path, last_id):
                    last_id, seen_s = item["id"], time.monotonic()
                    yield item
            except AwayError:
                if time.monotonic() - seen_s > MAX_AWAY_S:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def _events_behind(self, path: str, last_id: str) -> Iterator[dict[str, Any]]:
        """Raises AwayError: the stream ended without saying so."""
        headers = {"last-event-id": last_id} if last_id else {}
        with self._open("GET", path, None, headers) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield _read_item(line)
                if line.startswith(DONE):
                    return
        raise AwayError("the server ended the stream")

    def upload(self, path: str, *, file: bytes, metadata: dict[str, Any]) -> Any:
        """A form with a file and its metadata."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="metadata"\r\n\r\n{json.dumps(metadata)}\r\n',
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="prompt.safetensors"\r\n',
            "content-type: application/octet-stream\r\n\r\n",
        ]
        body = "".join(parts).encode() + file + f"\r\n--{boundary}--\r\n".encode()
        with self._open("POST", path, body, {"content-type": f"multipart/form-data; boundary={boundary}"}) as answer:
            return json.load(answer)

    @contextmanager
    def _open(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Iterator[Any]:
        request = Request(  # noqa: S310  the scheme was checked
            f"{self._url}{path}", data, {**self._headers, **headers}, method=method
        )
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                yield answer
        except HTTPError as error:
            is_away = error.headers.get("x-should-retry") == "true"
            raise (AwayError if is_away else SoftswapError)(_read_message(error)) from None
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise AwayError(f"no answer from {self._url} ({reason}); is the server running?") from None


def task_path(task: str, *rest: str) -> str:
    return "/".join(["/v1/tasks", *(quote(part, safe="") for part in (task, *rest))])


def _read_item(line: bytes) -> dict[str, Any]:
    item: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    if "error" in item:
        is_away = item["error"].get("code") == "draining"
        raise (AwayError if is_away else SoftswapError)(item["error"]["message"])
    return item


def _read_message(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {error.code}"
