"""Clients that speak HTTP over a bare socket, to leave or to stall at any byte."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post_request(path: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return f"POST {path} HTTP/1.1\r\n{headers}".encode() + content


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)
