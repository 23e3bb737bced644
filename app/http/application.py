"""The FastAPI application: routes, error bodies, the edge, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.http.openai import chat, completions, decisions, models
from app.http.operations import server
from app.http.protection.guard import BODY_LIMIT, PROMPT_BODY, PUBLIC_PATHS, Guard
from app.http.protection.middleware import TelemetryMiddleware, add_error_handlers
from app.http.tasks import evaluation, runs, tasks
from app.http.tasks import tokens as insight
from app.http.tuning import files, fine_tuning
from app.telemetry import Metrics

DESCRIPTION = """
One frozen language model, many tuned tasks. `model` names a task; its prompt goes before the request's text, and
requests to different tasks share every batch.

Errors have OpenAI's body on every path. With API keys set, every route but `/health` and `/ready` asks for
`Authorization: Bearer KEY`. Every limit is in `GET /v1/server`.
"""
TAGS = [
    {"name": "Tasks", "description": "Use and manage tasks."},
    {"name": "OpenAI", "description": "OpenAI's wire format: any OpenAI client works with `base_url` ending in `/v1`."},
    {"name": "Tuning", "description": "Learn tasks from examples, in OpenAI's words, while the server serves."},
    {"name": "Server", "description": "Probes, figures, limits."},
]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_application(*parts: object, metrics: Metrics, lifespan: Lifespan | None = None) -> FastAPI:
    """Args:
    parts: the objects that routes ask for by their class (`dependencies`), one of each.
    lifespan: what starts before the first request and ends after the last.
    """
    app = FastAPI(
        title="softswap",
        summary="Serve many tuned tasks from one frozen language model",
        description=DESCRIPTION,
        version=server.package_version("softswap"),
        openapi_tags=TAGS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.state.parts = {type(part): part for part in (*parts, metrics)}
    app.state.guard = app.state.parts[Guard]
    for module in (completions, chat, decisions, models, runs, evaluation, insight, tasks, files, fine_tuning, server):
        app.include_router(module.router)
    add_error_handlers(app, metrics)
    app.add_middleware(TelemetryMiddleware, metrics=metrics)
    _complete_document(app, app.state.guard)
    return app


def _operation_id(route: APIRoute) -> str:
    """The handler's name in camel case, as OpenAI writes it: `list_tasks` is `listTasks`."""
    first, *others = route.name.split("_")
    return first + "".join(map(str.title, others))


def _complete_document(app: FastAPI, guard: Guard) -> None:
    """Say in the OpenAPI document what the guard does: a key on every route but the public ones, and its limits."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        is_first = app.openapi_schema is None
        document = generate()
        if is_first:
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["bearer"] = {"type": "http", "scheme": "bearer"}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in PUBLIC_PATHS else [{"bearer": []}, {}]
                    operation.get("responses", {}).pop("422", None)
                    if operation.get(BODY_LIMIT) == PROMPT_BODY:
                        operation[BODY_LIMIT] = guard.max_prompt_body_bytes
        return document

    app.openapi = openapi  # type: ignore[method-assign]
