"""HTTP/1.1 over h11 with what uvicorn lacks: deadlines for peers, and our error body for what cannot be parsed."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.http.protection.error_table import Failure

MAX_HEADER_BYTES: Final = 2**16
MAX_UNSENT_BYTES: Final = 2**14
"""How much of an answer the system keeps until the network takes it. By default it keeps megabytes, a third of which a
client would have to read before anything showed that it reads at all."""


class DeadlineProtocol(H11Protocol):
    """Closes connections whose peer keeps the server waiting. To a handler, that is a client that left.

    Attributes:
        header_timeout_s: time until the next request begins, and until its headers end.
        send_timeout_s: time in which the peer must take something of an answer; a slow reader keeps its connection.
    """

    header_timeout_s: ClassVar[float] = 10.0
    send_timeout_s: ClassVar[float] = 60.0

    _header_deadline: asyncio.TimerHandle | None = None
    _send_deadline: asyncio.TimerHandle | None = None
    _num_unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # call `pause_writing` as soon as anything waits, not from 64 KiB on
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not on Windows
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching_headers()
        self._stop_watching_sending()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_sending()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(Failure(400, msg, "invalid_http").body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_headers(self) -> None:
        """The deadline runs only while the peer owes us the rest of its headers."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching_headers()
        elif self._header_deadline is None:
            self._header_deadline = self.loop.call_later(self.header_timeout_s, self._close_if_idle)

    def _stop_watching_headers(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _close_if_idle(self) -> None:
        self._header_deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _watch_sending(self) -> None:
        self._num_unsent_bytes = self.transport.get_write_buffer_size()
        self._send_deadline = self.loop.call_later(self.send_timeout_s, self._abort_if_stuck)

    def _stop_watching_sending(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _abort_if_stuck(self) -> None:
        if self.transport.get_write_buffer_size() == self._num_unsent_bytes:
            self.transport.abort()
        else:
            self._watch_sending()
