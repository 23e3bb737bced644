"""`/v1/tasks/{task}/tokens`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.answers.measuring.token_report import PromptTokensObject, tokens_object
from app.http.dependencies import CallDep, EngineCallDep, ReporterDep, ServingDep
from app.http.fields import MAX_MODEL_CHARS, reply
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, GuardedRoute
from app.http.tasks.examples import MAX_EXAMPLES_BODY_BYTES, ExampleSource, read_examples
from app.http.tasks.runs import TaskReference
from app.insight.plot import can_draw, draw_report
from app.insight.report import PromptReport

MAX_NEAREST: Final = 20


router = APIRouter(route_class=GuardedRoute, tags=["Tasks"])
SVG = "image/svg+xml"
DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report; with `format=svg`, or an `Accept` header that asks for it, as a drawing.",
        "content": {SVG: {"schema": {"type": "string"}}},
    }
}
SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Accept = Annotated[str, Header(include_in_schema=False)]


class TokensQuery(BaseModel):
    """What the report looks at, and its form."""

    num_nearest: int | None = Field(
        None, ge=1, le=MAX_NEAREST, description="Near tokens for each virtual token of embeddings; 5 without it."
    )
    compare: str | None = Field(
        None, min_length=1, max_length=MAX_MODEL_CHARS, description="Another version, such as `sentiment@2`."
    )
    format: Literal["json", "svg"] | None = Field(None, description="`svg` draws the report.")


Asked = Annotated[TokensQuery, Query()]


@router.get(
    "/v1/tasks/{task}/tokens",
    summary="Look at a prompt's virtual tokens",
    response_model=PromptTokensObject,
    responses=DRAWN | describe_statuses(400, 401, 404, 500),
)
async def view_tokens(
    *,
    task: TaskReference,
    reporter: ReporterDep,
    call: CallDep,
    asked: Asked,
    accept: Accept = "",
) -> Response:
    """Where the rows lie: near tokens and length among the vocabulary's, how far tuning moved them, which are nearly
    the same, what changed from another version. Keys and values are compared with those of a real text, layer by layer.
    """
    report = await reporter.report(task, asked.num_nearest, asked.compare, call=call)
    return await asyncio.to_thread(_answer, report, asked.format, accept)


@router.post(
    "/v1/tasks/{task}/tokens",
    summary="Measure what virtual tokens do",
    response_model=PromptTokensObject,
    responses=DRAWN | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
    openapi_extra={BODY_LIMIT: MAX_EXAMPLES_BODY_BYTES},
)
async def measure_tokens(
    *,
    task: TaskReference,
    request: ExampleSource,
    reporter: ReporterDep,
    serving: ServingDep,
    call: EngineCallDep,
    asked: Asked,
    accept: Accept = "",
) -> Response:
    """What `GET` shows, and `effects`: loss and accuracy on the examples without each virtual token, and with each
    replaced by its nearest token of the vocabulary. The examples go through the running engine and are not kept.
    """
    examples = await read_examples(request, serving)
    report = await reporter.report(task, asked.num_nearest, asked.compare, examples=examples, call=call)
    return await asyncio.to_thread(_answer, report, asked.format, accept)


def _answer(report: PromptReport, form: str | None, accept: str) -> Response:
    """`format` decides; without it the `Accept` header, as far as this server can draw."""
    is_preferred = SVG in accept and "application/json" not in accept and can_draw()
    if form == "svg" or (form is None and is_preferred):
        return Response(draw_report(report), media_type=SVG, headers={"content-security-policy": SVG_POLICY})
    return reply(tokens_object(report), exclude_unset=True)
