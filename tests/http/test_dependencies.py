from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from fastapi.routing import iter_route_contexts

from app.main import create_app
from app.model.backbone import Backbone
from tests.support.server import make_settings


def test_no_request_goes_to_a_thread_and_back_for_what_its_handler_asks_for(backbone: Backbone, tmp_path: Path) -> None:
    app = create_app(make_settings(tmp_path), backbone=backbone)
    routes: list[Any] = [context.original_route for context in iter_route_contexts(app.routes)]
    asked = [call for route in routes for call in _calls(route.dependant)]
    assert asked
    assert all(iscoroutinefunction(call) for call in asked)


def _calls(dependant: Any) -> Iterator[Any]:
    for each in dependant.dependencies:
        yield each.call
        yield from _calls(each)
