"""What to answer if no route takes the request's path, or its route does not take the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from app.http.protection.error_table import Failure

BASE: Final = "/v1"
MAX_PATH_CHARS: Final = 256
"""Of a path that is compared with the routes; a longer one is no slip."""
MIN_LIKENESS: Final = 0.7


def refuse_path(app: FastAPI, path: str) -> Failure:
    """404, with the route that was probably meant. It is named as the routes are, so nothing that was sent is told."""
    meant = _find_meant(list(_routes(app)), path) if len(path) <= MAX_PATH_CHARS else None
    guess = f"; did you mean {meant.path_format}?" if meant else "."
    return Failure(404, f"There is no such route{guess} GET /docs shows all of them.")


def refuse_method(app: FastAPI, path: str) -> Failure:
    """405, with the methods of all routes of this path: the one that refused knows only its own."""
    found = {method for route in _routes(app) if route.path_regex.match(path) for method in route.methods or ()}
    allowed = ", ".join(sorted(found))
    return Failure(405, f"This route takes {allowed} only.", headers={"allow": allowed})


def _routes(app: FastAPI) -> Iterator[APIRoute]:
    routes = (context.original_route for context in iter_route_contexts(app.routes))
    return (route for route in routes if isinstance(route, APIRoute))


def _find_meant(routes: Sequence[APIRoute], path: str) -> APIRoute | None:
    """The route of the whole path, with or without BASE before it; or the one spelled alike; or the path's end's."""
    segments = [segment for segment in path.split("/") if segment]
    ends = (segments[start:] for start in range(1, len(segments)))
    found = (_find_route(routes, segments), _find_alike(routes, segments), *(_find_route(routes, end) for end in ends))
    return next((route for route in found if route), None)


def _find_route(routes: Sequence[APIRoute], segments: Sequence[str]) -> APIRoute | None:
    path = "/" + "/".join(segments)
    return next(
        (route for route in routes if route.path_regex.match(path) or route.path_regex.match(BASE + path)), None
    )


def _find_alike(routes: Sequence[APIRoute], segments: Sequence[str]) -> APIRoute | None:
    likeness, alike = max(((_likeness(route, segments), route) for route in routes), key=lambda pair: pair[0])
    return alike if likeness >= MIN_LIKENESS else None


def _likeness(route: APIRoute, segments: Sequence[str]) -> float:
    """Of the least alike pair of segments, 0 to 1; what stands in a parameter's place is not compared."""
    own = route.path_format.strip("/").split("/")
    if len(own) != len(segments):
        return 0.0
    pairs = [(each, given.lower()) for each, given in zip(own, segments, strict=True) if not each.startswith("{")]
    return min(SequenceMatcher(None, *pair).ratio() for pair in pairs)
