"""reply: a JSON document as a response, serialized once. FastAPI would check what a handler returns once more."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import Response


def reply(
    body: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None, exclude_unset: bool = False
) -> Response:
    """Args: exclude_unset: leave out fields that were not given, as the route's `response_model_exclude_unset` says."""
    return Response(body.model_dump_json(exclude_unset=exclude_unset), status, headers, "application/json")
