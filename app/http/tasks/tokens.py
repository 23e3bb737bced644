"""`/v1/tasks/{task}/tokens`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Response

from app.answers.call import Call
from app.answers.measuring.evaluation import find_examples
from app.answers.measuring.token_report import report_tokens
from app.answers.views.tokens import tokens_object
from app.http.fields import MAX_MODEL_CHARS
from app.http.protection.deps import CacheSaltDep, DeadlineDep, ServicesDep
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, GuardedRoute
from app.http.tasks.evaluation_schema import MAX_EXAMPLES_BODY_BYTES
from app.http.tasks.runs import TaskReference
from app.http.tasks.tokens_schema import PromptTokens, TokensRequest
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

NumNearest = Annotated[
    int | None,
    Query(ge=1, le=MAX_NEAREST, description="Near tokens for each virtual token of embeddings; 5 without it."),
]
Compare = Annotated[
    str | None,
    Query(min_length=1, max_length=MAX_MODEL_CHARS, description="Another version, such as `sentiment@2`."),
]
Format = Annotated[Literal["json", "svg"] | None, Query(alias="format", description="`svg` draws the report.")]
Accept = Annotated[str, Header(include_in_schema=False)]


@router.get(
    "/v1/tasks/{task}/tokens",
    operation_id="viewTokens",
    summary="Look at a prompt's virtual tokens",
    response_model=PromptTokens,
    response_model_exclude_unset=True,
    responses=DRAWN | describe_statuses(400, 401, 404, 500),
)
async def view_tokens(
    *,
    task: TaskReference,
    services: ServicesDep,
    deadline_s: DeadlineDep,
    num_nearest: NumNearest = None,
    compare: Compare = None,
    form: Format = None,
    accept: Accept = "",
) -> Any:
    """Where the rows lie: near tokens and length among the vocabulary's, how far tuning moved them, which are nearly
    the same, what changed from another version. Keys and values are set beside those of a real text, layer by layer.
    """
    call = Call.within(deadline_s)
    report = await report_tokens(services, task, num_nearest=num_nearest, compare=compare, call=call)
    return await asyncio.to_thread(_answer, report, form, accept)


@router.post(
    "/v1/tasks/{task}/tokens",
    operation_id="measureTokens",
    summary="Measure what virtual tokens do",
    response_model=PromptTokens,
    response_model_exclude_unset=True,
    responses=DRAWN | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
    openapi_extra={BODY_LIMIT: MAX_EXAMPLES_BODY_BYTES},
)
async def measure_tokens(
    *,
    task: TaskReference,
    request: TokensRequest,
    services: ServicesDep,
    deadline_s: DeadlineDep,
    cache_salt: CacheSaltDep,
    num_nearest: NumNearest = None,
    compare: Compare = None,
    form: Format = None,
    accept: Accept = "",
) -> Any:
    """What `GET` shows, and `effects`: loss and accuracy on the examples without each virtual token, and with each
    replaced by its nearest token of the vocabulary. The examples go through the running engine and are not kept.
    """
    examples = await find_examples(services, request)
    call = Call.within(deadline_s, cache_salt)
    report = await report_tokens(services, task, num_nearest=num_nearest, compare=compare, examples=examples, call=call)
    return await asyncio.to_thread(_answer, report, form, accept)


def _answer(report: PromptReport, asked: str | None, accept: str) -> Any:
    """`format` decides; without it the `Accept` header, as far as this server can draw."""
    is_preferred = SVG in accept and "application/json" not in accept and can_draw()
    if asked == "svg" or (asked is None and is_preferred):
        return Response(draw_report(report), media_type=SVG, headers={"content-security-policy": SVG_POLICY})
    return tokens_object(report)
