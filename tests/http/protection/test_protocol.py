"""HastyConnection writes what h11 writes."""

from __future__ import annotations

import h11
import pytest

from app.http.protection.protocol import HastyConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED, SIZED = ("transfer-encoding", "chunked"), ("content-length", "6")


def connection_of(kind: type[h11.Connection], framing: tuple[str, str], request: bytes = REQUEST) -> h11.Connection:
    connection = kind(h11.SERVER)
    connection.receive_data(request)
    assert isinstance(connection.next_event(), h11.Request)
    connection.next_event()
    connection.send(h11.Response(status_code=200, headers=[framing]))
    return connection


@pytest.mark.parametrize("framing", [CHUNKED, SIZED])
@pytest.mark.parametrize("request_head", [REQUEST, REQUEST.replace(b"1.1", b"1.0"), REQUEST.replace(b"GET", b"HEAD")])
def test_a_body_in_pieces_is_h11s_own(framing: tuple[str, str], request_head: bytes) -> None:
    sizes = [] if b"HEAD" in request_head else [1, 0, 5]
    written = []
    for kind in (HastyConnection, h11.Connection):
        connection = connection_of(kind, framing, request_head)
        pieces = [connection.send(h11.Data(data=b"x" * size)) for size in sizes]
        written.append([*pieces, connection.send(h11.EndOfMessage()), connection.states])
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", [HastyConnection, h11.Connection])
def test_more_than_was_promised_is_an_error(kind: type[h11.Connection]) -> None:
    connection = connection_of(kind, SIZED)
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"x" * 7))
    assert connection.our_state is h11.ERROR


@pytest.mark.parametrize("kind", [HastyConnection, h11.Connection])
def test_a_piece_behind_the_end_is_an_error(kind: type[h11.Connection]) -> None:
    connection = connection_of(kind, CHUNKED)
    connection.send(h11.EndOfMessage())
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"x"))
