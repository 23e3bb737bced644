"""HTTP/1.1 over h11 with what uvicorn lacks: deadlines for peers, our body for what cannot be parsed, and haste."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.http.protection.error_table import Failure

MAX_HEADER_BYTES: Final = 2**16


HEADER_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 60.0
MAX_UNSENT_BYTES: Final = 2**14
"""What the system keeps of an answer until the network takes it. It would keep megabytes, of which a client would have
to read a third before anything showed that it reads."""


class HastyConnection(h11.Connection):
    """Sends a piece of a body without asking the state machine, which it leaves as it was.

    Between the head and the end of a body any number of pieces may come, and nothing else changes; a streamed answer
    has a piece for every token.
    """

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        if type(event) is not h11.Data or self.our_state is not h11.SEND_BODY:
            return super().send_with_data_passthrough(event)
        pieces: list[bytes] = []
        assert self._writer is not None
        try:
            self._writer(event, pieces.append)
        except h11.LocalProtocolError:  # more than Content-Length says
            self._process_error(self.our_role)
            raise
        return pieces


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose next request does not begin, or whose headers do not end, in HEADER_TIMEOUT_S.

    Also one whose peer takes nothing of an answer for SEND_TIMEOUT_S; one that reads slowly keeps its connection. To
    the handler it is a client that left.
    """

    _header_deadline: asyncio.TimerHandle | None = None
    _send_deadline: asyncio.TimerHandle | None = None
    _num_unsent_bytes = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = HastyConnection(self.conn.our_role, self.conn._max_incomplete_event_size)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` as soon as anything waits, not from 64 KiB on
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Windows has none
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
        """A deadline runs while the peer owes us the rest of its headers, and only then."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching_headers()
        elif self._header_deadline is None:
            self._header_deadline = self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_idle)

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
        self._send_deadline = self.loop.call_later(SEND_TIMEOUT_S, self._abort_if_stuck)

    def _stop_watching_sending(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _abort_if_stuck(self) -> None:
        if self.transport.get_write_buffer_size() == self._num_unsent_bytes:
            self.transport.abort()
        else:
            self._watch_sending()
