"""`/health`, `/ready`, `/metrics`, `/v1/server`, `/openapi.json` and `/docs`."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import Final, Literal

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.answers.measuring.token_report import MAX_ABLATIONS
from app.answers.views import Reply
from app.errors import TuningUnavailable
from app.http.dependencies import (
    MAX_TIMEOUT_S,
    BackboneDep,
    EngineDep,
    GuardDep,
    MaybeTuning,
    MetricsDep,
    ReadinessDep,
    RegistryDep,
    ServingDep,
)
from app.http.fields import MAX_N, MAX_TEXT_CHARS, reply
from app.http.openai.chat_schema import MAX_MESSAGES
from app.http.openai.completions import MAX_PROMPTS, MAX_TOKEN_IDS
from app.http.openai.decisions import MAX_CHOICES, MAX_LEVELS, MAX_QUESTIONS
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import MAX_BODY_BYTES, GuardedRoute
from app.http.protection.protocol import MAX_HEADER_BYTES
from app.http.protection.uploads import MAX_UPLOADS
from app.http.tasks.examples import MAX_EXAMPLES_BODY_BYTES
from app.http.tasks.runs import MAX_INPUTS
from app.jobs.files import MAX_ALL_FILES_BYTES, MAX_FILE_BYTES, MAX_FILES
from app.jobs.job_store import MAX_JOBS, MAX_UNFINISHED_JOBS
from app.jobs.notifier import MAX_LISTENERS
from app.measure.reading.table import MAX_LINE_CHARS, MAX_ROWS
from app.registry.formats.bounds import MAX_LABELS
from app.registry.formats.foreign_file import max_upload_bytes
from app.registry.reference import MAX_ENSEMBLE
from app.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS
from app.task_prompt import MAX_VIRTUAL_TOKENS
from app.tuning.config import MAX_JOB_BATCH_SIZE, MAX_JOB_EPOCHS, MAX_JOB_UPDATES
from app.tuning.search import MAX_MEMBERS

LIMITS: Final[dict[str, int | float]] = {
    "body_bytes": MAX_BODY_BYTES,
    "header_bytes": MAX_HEADER_BYTES,
    "prompts": MAX_PROMPTS,
    "text_chars": MAX_TEXT_CHARS,
    "token_ids": MAX_TOKEN_IDS,
    "n": MAX_N,
    "stop": MAX_STOP,
    "stop_chars": MAX_STOP_CHARS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logprobs": MAX_LOGPROBS,
    "logit_bias": MAX_LOGIT_BIAS,
    "messages": MAX_MESSAGES,
    "inputs": MAX_INPUTS,
    "ensemble_members": MAX_ENSEMBLE,
    "examples": MAX_EXAMPLES,
    "examples_body_bytes": MAX_EXAMPLES_BODY_BYTES,
    "ablations": MAX_ABLATIONS,
    "questions": MAX_QUESTIONS,
    "choices": MAX_CHOICES,
    "levels": MAX_LEVELS,
    "labels": MAX_LABELS,
    "virtual_tokens": MAX_VIRTUAL_TOKENS,
    "file_bytes": MAX_FILE_BYTES,
    "file_uploads": MAX_UPLOADS,
    "file_line_chars": MAX_LINE_CHARS,
    "file_lines": MAX_ROWS,
    "files": MAX_FILES,
    "all_files_bytes": MAX_ALL_FILES_BYTES,
    "jobs": MAX_JOBS,
    "unfinished_jobs": MAX_UNFINISHED_JOBS,
    "job_followers": MAX_LISTENERS,
    "job_members": MAX_MEMBERS,
    "job_epochs": MAX_JOB_EPOCHS,
    "job_updates": MAX_JOB_UPDATES,
    "job_batch_size": MAX_JOB_BATCH_SIZE,
    "timeout_s": MAX_TIMEOUT_S,
}
"""Every bound a caller can meet, but for what depends on the backbone. Each is defined where it is enforced."""
router = APIRouter(route_class=GuardedRoute, tags=["Server"])
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


class Status(Reply):
    """Yes; a no is an error with status 503."""

    status: Literal["ok"] = "ok"


class BackboneObject(Reply):
    """The frozen model that all tasks share."""

    name: str
    fingerprint: str
    device: str
    dtype: str
    quantize: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    has_chat_template: bool


class EngineObject(Reply):
    """Sizes and present load of the engine."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_waiting_requests: int
    max_waiting_tokens: int
    prompt_lookup: int
    num_running: int
    num_waiting: int
    num_free_blocks: int


class TuningObject(Reply):
    """Whether it takes files and runs jobs."""

    is_available: bool
    fault: str | None
    num_unfinished_jobs: int


class ServerObject(Reply):
    """What this server is, and what it takes."""

    object: Literal["server"] = "server"
    versions: dict[str, str]
    backbone: BackboneObject
    engine: EngineObject
    tuning: TuningObject
    num_tasks: int
    limits: dict[str, int | float]
    request_timeout_s: float
    has_api_keys: bool


@router.get(
    "/health", operation_id="health", summary="Is it alive?", response_model=Status, responses=describe_statuses(503)
)
async def check_health(readiness: ReadinessDep) -> Response:
    """200 while the event loop and the engine's thread both answer. On 503 restart the process. Needs no key."""
    readiness.check_alive()
    return reply(Status())


@router.get(
    "/ready",
    operation_id="ready",
    summary="Would a request be served?",
    response_model=Status,
    responses=describe_statuses(503),
)
async def check_ready(readiness: ReadinessDep) -> Response:
    """200 once the first request would be served; 503 while starting and as soon as the server stops. Needs no key."""
    readiness.check_accepting()
    return reply(Status())


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text exposition", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **describe_statuses(401),
    },
)
async def show_metrics(metrics: MetricsDep) -> Response:
    """vLLM's series under the prefix `softswap_`, and counters for each task."""
    return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/server", summary="Limits and versions", response_model=ServerObject, responses=describe_statuses(401))
async def describe_server(
    *, backbone: BackboneDep, registry: RegistryDep, engine: EngineDep, guard: GuardDep, serving: ServingDep
) -> Response:
    """What this server is: its versions, backbone, sizes, load, and every limit a request can meet."""
    dtype = str(backbone.dtype).removeprefix("torch.")
    of_backbone = BackboneObject.fields_of(backbone) | {
        "device": str(backbone.device),
        "dtype": dtype,
        "num_layers": backbone.kv_shape.num_layers,
    }
    of_engine = EngineObject.fields_of(engine.stats) | EngineObject.fields_of(engine.config)
    shown = ServerObject(
        versions={name: package_version(name) for name in ("softswap", "torch", "transformers", "fastapi")},
        backbone=BackboneObject(**of_backbone),
        engine=EngineObject(**of_engine),
        tuning=await asyncio.to_thread(_describe_tuning, serving.tuning),
        num_tasks=len(await asyncio.to_thread(registry.tasks)),
        limits={**LIMITS, "upload_bytes": max_upload_bytes(backbone)},
        request_timeout_s=serving.timeout_s,
        has_api_keys=bool(guard.keys),
    )
    return reply(shown)


def _describe_tuning(tuning: MaybeTuning) -> TuningObject:
    if isinstance(tuning, TuningUnavailable):
        return TuningObject(is_available=False, fault=tuning.message, num_unfinished_jobs=0)
    return TuningObject(is_available=True, fault=None, num_unfinished_jobs=len(tuning.jobs.unfinished()))


@router.get("/openapi.json", include_in_schema=False)
async def show_openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", include_in_schema=False)
async def show_docs() -> Response:
    """The OpenAPI document as a page for people, which loads nothing from anywhere else."""
    return HTMLResponse(_read_page(), headers={"content-security-policy": PAGE_POLICY})


@cache
def _read_page() -> str:
    return files("app.http.operations").joinpath("docs.html").read_text(encoding="utf-8")


def package_version(name: str) -> str:
    """Of an installed distribution; "source" if softswap runs from a checkout that was never installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "source"
