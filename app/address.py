"""The address that a server listens on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from app.errors import InvalidInput


def bind(host: str, port: int) -> socket.socket:
    """Take the address without listening on it: callers are refused, not kept waiting, while the backbone loads.

    The socket must say its protocol: asyncio switches Nagle's algorithm off only if it reads IPPROTO_TCP, and with
    it on, every answer waits 40 ms for the client's acknowledgement of its own headers.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closed_on_error:
            address = closed_on_error.enter_context(socket.socket(family, kind, protocol))
            address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            address.bind(where)
            closed_on_error.pop_all()
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host or --port", param="port"
        ) from error
    return address
