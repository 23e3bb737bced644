"""`/v1/tasks`: the registry over HTTP. Everything it does on disk runs in a thread."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from app.answers.views import TaskObject, VersionObject
from app.errors import InvalidInput, NotFound
from app.http.dependencies import (
    BackboneDep,
    CallDep,
    EvaluatorDep,
    GuardDep,
    IfMatchDep,
    ReadinessDep,
    RegistryDep,
    ServingDep,
)
from app.http.fields import MAX_PAGE, reply
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, PROMPT_BODY, GuardedRoute
from app.http.protection.uploads import describe_form
from app.http.protection.validation import ALIAS_PATTERN, TASK_PATTERN
from app.http.tasks.examples import MAX_EXAMPLES_BODY_BYTES, read_examples
from app.http.tasks.tasks_schema import (
    AliasObject,
    AliasRequest,
    DeletedObject,
    EvaluationList,
    TaskList,
    TextVersionRequest,
    VersionList,
    read_version,
)
from app.measure.promote import GateRequest, find_gate, promote, publish
from app.registry.aliases import require_target
from app.registry.registry import Registry

router = APIRouter(route_class=GuardedRoute, tags=["Tasks"])
TaskName = Annotated[str, Path(pattern=TASK_PATTERN, description="The task's name.", examples=["sentiment"])]
AliasName = Annotated[str, Path(pattern=ALIAS_PATTERN, description="The alias.", examples=["live"])]
Number = Annotated[int, Path(ge=1, le=999_999_999, description="The version's number.", examples=[1])]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries to answer with.")]
READ = describe_statuses(400, 401, 404, 500)
WRITE = describe_statuses(400, 401, 404, 408, 412, 413, 415, 500)
MEASURE = WRITE | describe_statuses(503, 504)


@router.get("/v1/tasks", summary="List tasks", response_model=TaskList, responses=READ)
async def list_tasks(
    registry: RegistryDep,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=64, description="The last name of the page before.")] = None,
) -> Response:
    """Tasks in order of their names. One that has versions for other backbones only says so in `missing`."""
    summaries = await asyncio.to_thread(registry.tasks)
    rest = [summary for summary in summaries if after is None or summary.task > after]
    return reply(TaskList(data=rest[:limit], has_more=len(rest) > limit))


@router.get("/v1/tasks/{task}", summary="Show a task", response_model=TaskObject, responses=READ)
async def retrieve_task(task: TaskName, registry: RegistryDep) -> Response:
    """The task, its live version, its aliases, and what it has for other backbones. The `ETag` header is what
    `If-Match` asks for; it changes with every backbone's part."""
    found = await asyncio.to_thread(registry.task, task)
    return reply(TaskObject.model_validate(found), headers=await _etag(registry, task))


@router.get("/v1/tasks/{task}/versions", summary="List a task's versions", response_model=VersionList, responses=READ)
async def list_versions(
    task: TaskName,
    registry: RegistryDep,
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, description="The last number of the page before.")] = None,
) -> Response:
    """Versions for all backbones, newest first."""
    versions = await asyncio.to_thread(registry.versions, task)
    rest = sorted((v for v in versions if before is None or v.number < before), key=lambda v: -v.number)
    return reply(VersionList(data=rest[:limit], has_more=len(rest) > limit))


@router.get(
    "/v1/tasks/{task}/versions/{number}", summary="Show a version", response_model=VersionObject, responses=READ
)
async def retrieve_version(task: TaskName, number: Number, registry: RegistryDep) -> Response:
    """One version, for whatever backbone: its template, labels, defaults, figures and where it comes from."""
    version = await asyncio.to_thread(registry.version, task, number)
    return reply(VersionObject.model_validate(version))


@router.get(
    "/v1/tasks/{task}/versions/{number}/evaluations",
    summary="List a version's evaluations",
    response_model=EvaluationList,
    responses=READ,
)
async def list_evaluations(task: TaskName, number: Number, registry: RegistryDep) -> Response:
    """What was measured after the publication, for a gate or with `record`; its own figures are in `metrics`."""

    def read() -> EvaluationList:
        return EvaluationList(data=registry.evaluations.of_version(registry.version(task, number)))

    return reply(await asyncio.to_thread(read))


@router.post(
    "/v1/tasks/{task}/versions",
    summary="Publish a version",
    status_code=201,
    response_model=VersionObject,
    responses=MEASURE,
    openapi_extra={
        BODY_LIMIT: PROMPT_BODY,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": TextVersionRequest.model_json_schema()},
                **describe_form(
                    "file",
                    file="A safetensors file with one tensor, `prompt_embeddings`, of float32, float16 or bfloat16: "
                    "what PEFT writes as adapter_model.safetensors.",
                    metadata={"type": "string", "description": "JSON: `UploadMetadata`."},
                ),
            },
        },
    },
)
async def create_version(
    *,
    task: TaskName,
    request: Request,
    backbone: BackboneDep,
    registry: RegistryDep,
    evaluator: EvaluatorDep,
    readiness: ReadinessDep,
    guard: GuardDep,
    call: CallDep,
    if_match: IfMatchDep,
) -> Response:
    """A soft prompt as a safetensors file in a form, or a hand-written text as JSON. It can be used when this answers.

    If the alias has a gate, the prompt is measured on the gate's examples first; if it scores lower than the version
    it would replace, the answer is 412 and nothing is published, unless `force` is set or `alias` is null.

    curl -F file=@adapter_model.safetensors -F 'metadata={"labels": ["no", "yes"]}' .../v1/tasks/mine/versions
    curl --json '{"text": "Translate to French.\\n"}' .../v1/tasks/mine/versions
    """
    publication, metadata = await read_version(request, backbone, guard.uploads)
    promotion = publish(
        registry, task, publication, alias=metadata.alias, force=bool(metadata.force), if_match=if_match
    )
    version = await evaluator.promote(task, promotion, call, readiness)
    headers = {**await _etag(registry, task), "location": f"/v1/tasks/{task}/versions/{version.number}"}
    return reply(VersionObject.model_validate(version), status=201, headers=headers)


@router.put(
    "/v1/tasks/{task}/aliases/{alias}",
    summary="Move an alias",
    response_model=AliasObject,
    responses=MEASURE,
    openapi_extra={BODY_LIMIT: MAX_EXAMPLES_BODY_BYTES},
)
async def set_alias(
    *,
    task: TaskName,
    alias: AliasName,
    request: AliasRequest,
    registry: RegistryDep,
    evaluator: EvaluatorDep,
    readiness: ReadinessDep,
    serving: ServingDep,
    call: CallDep,
    if_match: IfMatchDep,
) -> Response:
    """Roll out, roll back, or share requests between two versions. Requests that already run are not affected.

    With a `gate`, here or from an earlier call, every version the alias is to mean is measured on the gate's examples
    and compared with the one it means now; a lower score is answered with 412, unless `force` is set.
    """
    if (request.version is None) == (request.weights is None):
        raise InvalidInput("give either version or weights", param="version")
    target = require_target(request.version or {int(n): weight for n, weight in (request.weights or {}).items()})
    asked = None
    if request.gate is not None:
        examples = await read_examples(request.gate, serving)
        asked = GateRequest(examples, request.gate.metric, request.gate.tolerance or 0.0)
    promotion = promote(registry, task, alias, target, gate=asked, force=bool(request.force), if_match=if_match)
    await evaluator.promote(task, promotion, call, readiness)
    gate = await asyncio.to_thread(find_gate, registry, task, alias)
    shown = AliasObject(task=task, alias=alias, target=target, gate=gate)
    return reply(shown, headers=await _etag(registry, task))


@router.delete(
    "/v1/tasks/{task}/aliases/{alias}/gate",
    summary="Take an alias's gate away",
    response_model=DeletedObject,
    responses=WRITE,
)
async def delete_gate(task: TaskName, alias: AliasName, registry: RegistryDep, if_match: IfMatchDep) -> Response:
    """The alias stays and moves freely; the gate's examples are no longer kept."""
    await asyncio.to_thread(registry.delete_gate, task, alias, if_match=if_match)
    return reply(DeletedObject(id=f"{task}@{alias}", object="task.gate"))


@router.delete(
    "/v1/tasks/{task}/aliases/{alias}", summary="Delete an alias", response_model=DeletedObject, responses=WRITE
)
async def delete_alias(task: TaskName, alias: AliasName, registry: RegistryDep, if_match: IfMatchDep) -> Response:
    """The versions it named stay. Without `live`, the bare task name means nothing until the alias is set again."""
    await asyncio.to_thread(registry.delete_alias, task, alias, if_match=if_match)
    return reply(DeletedObject(id=f"{task}@{alias}", object="task.alias"))


@router.delete(
    "/v1/tasks/{task}/versions/{number}", summary="Delete a version", response_model=DeletedObject, responses=WRITE
)
async def delete_version(task: TaskName, number: Number, registry: RegistryDep, if_match: IfMatchDep) -> Response:
    """A version that an alias names cannot go: move the alias first. Requests that already run are not affected."""
    await asyncio.to_thread(registry.delete_version, task, number, if_match=if_match)
    return reply(DeletedObject(id=f"{task}@{number}", object="task.version"))


@router.delete(
    "/v1/tasks/{task}", summary="Delete a task with its versions", response_model=DeletedObject, responses=WRITE
)
async def delete_task(task: TaskName, registry: RegistryDep, if_match: IfMatchDep) -> Response:
    """All of its versions for the backbone that is served; what other backbones have of it stays. Requests that
    already run are not affected."""
    await asyncio.to_thread(registry.delete_task, task, if_match=if_match)
    return reply(DeletedObject(id=task, object="task"))


async def _etag(registry: Registry, task: str) -> dict[str, str]:
    """The header; none if another client has deleted the task meanwhile: what was asked for is done all the same."""
    with suppress(NotFound):
        return {"etag": f'"{await asyncio.to_thread(lambda: registry.task(task).etag)}"'}
    return {}
