from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

from tests.support.server import LiveServer


def test_no_request_goes_to_a_thread_and_back_for_what_its_handler_asks_for(server: LiveServer) -> None:
    asked = [call for route in server.routes for call in _calls(route.dependant)]
    assert asked
    assert all(iscoroutinefunction(call) for call in asked)


def _calls(dependant: Any) -> Iterator[Any]:
    for each in dependant.dependencies:
        yield each.call
        yield from _calls(each)
