"""`/v1/tasks`: the registry over HTTP. Everything it does on disk runs in a thread."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from app.answers.call import Call
from app.answers.measuring.evaluation import find_examples
from app.answers.readiness import Services
from app.answers.views.tasks import gate_object, recorded_object, target_object, task_object, version_object
from app.errors import InvalidInput, NotFound
from app.http.fields import MAX_PAGE
from app.http.protection.deps import CacheSaltDep, DeadlineDep, IfMatchDep, ServicesDep
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, GuardedRoute
from app.http.protection.patterns import ALIAS_PATTERN, TASK_PATTERN
from app.http.tasks.evaluation_schema import MAX_EXAMPLES_BODY_BYTES
from app.http.tasks.tasks_schema import (
    Alias,
    AliasRequest,
    Deleted,
    EvaluationList,
    Task,
    TaskList,
    TextVersionRequest,
    Version,
    VersionList,
)
from app.http.tasks.uploads import MAX_UPLOAD_BODY_BYTES, read_version
from app.measure.promote import GateRequest, find_gate
from app.registry.aliases import AliasTarget

router = APIRouter(route_class=GuardedRoute, tags=["Tasks"])
TaskName = Annotated[str, Path(pattern=TASK_PATTERN, description="The task's name.", examples=["sentiment"])]
AliasName = Annotated[str, Path(pattern=ALIAS_PATTERN, description="The alias.", examples=["live"])]
Number = Annotated[int, Path(ge=1, le=999_999_999, description="The version's number.", examples=[1])]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries to answer with.")]
READ = describe_statuses(400, 401, 404, 500)
WRITE = describe_statuses(400, 401, 404, 408, 412, 413, 415, 500)
MEASURE = WRITE | describe_statuses(503, 504)


@router.get("/v1/tasks", operation_id="listTasks", summary="List tasks", response_model=TaskList, responses=READ)
async def list_tasks(
    services: ServicesDep,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=64, description="The last name of the page before.")] = None,
) -> Any:
    """Tasks in order of their names."""
    summaries = sorted(await asyncio.to_thread(services.registry.tasks), key=lambda summary: summary.task)
    rest = [summary for summary in summaries if after is None or summary.task > after]
    return TaskList(data=[task_object(summary) for summary in rest[:limit]], has_more=len(rest) > limit)


@router.get("/v1/tasks/{task}", operation_id="retrieveTask", summary="Show a task", response_model=Task, responses=READ)
async def retrieve_task(task: TaskName, services: ServicesDep, response: Response) -> Any:
    """The task, its live version and its aliases. The `ETag` header is what `If-Match` asks for."""
    found = await asyncio.to_thread(services.registry.task, task)
    await _add_etag(services, task, response)
    return task_object(found)


@router.get(
    "/v1/tasks/{task}/versions",
    operation_id="listVersions",
    summary="List a task's versions",
    response_model=VersionList,
    responses=READ,
)
async def list_versions(
    task: TaskName,
    services: ServicesDep,
    limit: Limit = 100,
    before: Annotated[int | None, Query(ge=1, description="The last number of the page before.")] = None,
) -> Any:
    """Versions, newest first."""
    versions = await asyncio.to_thread(services.registry.versions, task)
    rest = sorted((v for v in versions if before is None or v.number < before), key=lambda v: -v.number)
    return VersionList(data=[version_object(version) for version in rest[:limit]], has_more=len(rest) > limit)


@router.get(
    "/v1/tasks/{task}/versions/{number}",
    operation_id="retrieveVersion",
    summary="Show a version",
    response_model=Version,
    responses=READ,
)
async def retrieve_version(task: TaskName, number: Number, services: ServicesDep) -> Any:
    """One version: its template, labels, defaults, figures and where it comes from."""
    return version_object(await asyncio.to_thread(services.registry.resolve, f"{task}@{number}"))


@router.get(
    "/v1/tasks/{task}/versions/{number}/evaluations",
    operation_id="listEvaluations",
    summary="List a version's evaluations",
    response_model=EvaluationList,
    responses=READ,
)
async def list_evaluations(task: TaskName, number: Number, services: ServicesDep) -> Any:
    """What was measured after the publication, for a gate or with `record`; its own figures are in `metrics`."""

    def read() -> EvaluationList:
        found = services.registry.evaluations.of_version(services.registry.resolve(f"{task}@{number}"))
        return EvaluationList(data=[recorded_object(each) for each in found])

    return await asyncio.to_thread(read)


@router.post(
    "/v1/tasks/{task}/versions",
    operation_id="createVersion",
    summary="Publish a version",
    status_code=201,
    response_model=Version,
    responses=MEASURE,
    openapi_extra={
        BODY_LIMIT: MAX_UPLOAD_BODY_BYTES,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": TextVersionRequest.model_json_schema()},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "additionalProperties": False,
                        "properties": {
                            "file": {
                                "type": "string",
                                "format": "binary",
                                "description": "A safetensors file with one tensor, `prompt_embeddings`, of float32, "
                                "float16 or bfloat16: what PEFT writes as adapter_model.safetensors.",
                            },
                            "metadata": {"type": "string", "description": "JSON: `UploadMetadata`."},
                        },
                    },
                },
            },
        },
    },
)
async def create_version(
    *,
    task: TaskName,
    request: Request,
    services: ServicesDep,
    response: Response,
    deadline_s: DeadlineDep,
    cache_salt: CacheSaltDep,
    if_match: IfMatchDep,
) -> Any:
    """A soft prompt as a safetensors file in a form, or a hand-written text as JSON. It can be used when this answers.

    Where the alias has a gate, the prompt is measured on the gate's examples first; if it scores lower than the version
    it would replace, the answer is 412 and nothing is published, unless `force` is set or `alias` is null.

    curl -F file=@adapter_model.safetensors -F 'metadata={"labels": ["no", "yes"]}' .../v1/tasks/mine/versions
    curl --json '{"text": "Translate to French.\\n"}' .../v1/tasks/mine/versions
    """
    publication, metadata = await read_version(request, services.backbone)
    version = await services.promoter.publish(
        task,
        publication,
        alias=metadata.alias,
        force=bool(metadata.force),
        if_match=if_match,
        call=Call.within(deadline_s, cache_salt),
    )
    await _add_etag(services, task, response)
    response.headers["location"] = f"/v1/tasks/{task}/versions/{version.number}"
    return version_object(version)


@router.put(
    "/v1/tasks/{task}/aliases/{alias}",
    operation_id="setAlias",
    summary="Move an alias",
    response_model=Alias,
    responses=MEASURE,
    openapi_extra={BODY_LIMIT: MAX_EXAMPLES_BODY_BYTES},
)
async def set_alias(
    *,
    task: TaskName,
    alias: AliasName,
    request: AliasRequest,
    services: ServicesDep,
    response: Response,
    deadline_s: DeadlineDep,
    cache_salt: CacheSaltDep,
    if_match: IfMatchDep,
) -> Any:
    """Roll out, roll back, or share requests between two versions. Requests that already run are not touched.

    With a `gate`, here or from an earlier call, every version the alias shall mean is measured on the gate's examples
    and compared with the one it means now; a lower score is answered with 412, unless `force` is set.
    """
    if (request.version is None) == (request.weights is None):
        raise InvalidInput("give either version or weights", param="version")
    target: AliasTarget = request.version or {int(n): weight for n, weight in (request.weights or {}).items()}
    gate = None
    if request.gate is not None:
        examples = await find_examples(services, request.gate)
        gate = GateRequest(examples, request.gate.metric, request.gate.tolerance or 0.0)
    call = Call.within(deadline_s, cache_salt)
    await services.promoter.move_alias(
        task, alias, target, gate=gate, force=bool(request.force), if_match=if_match, call=call
    )
    await _add_etag(services, task, response)
    standing = await asyncio.to_thread(find_gate, services.registry, task, alias)
    shown = None if standing is None else gate_object(standing)
    return Alias(task=task, alias=alias, target=target_object(target), gate=shown)


@router.delete(
    "/v1/tasks/{task}/aliases/{alias}/gate",
    operation_id="deleteGate",
    summary="Take an alias's gate away",
    response_model=Deleted,
    responses=WRITE,
)
async def delete_gate(task: TaskName, alias: AliasName, services: ServicesDep, if_match: IfMatchDep) -> Any:
    """The alias stays and moves freely; the gate's examples are no longer kept."""
    await asyncio.to_thread(services.registry.delete_gate, task, alias, if_match=if_match)
    return Deleted(id=f"{task}@{alias}", object="task.gate")


@router.delete(
    "/v1/tasks/{task}/aliases/{alias}",
    operation_id="deleteAlias",
    summary="Delete an alias",
    response_model=Deleted,
    responses=WRITE,
)
async def delete_alias(task: TaskName, alias: AliasName, services: ServicesDep, if_match: IfMatchDep) -> Any:
    """The versions it named stay. Without `live`, the bare task name means nothing until the alias is set again."""
    await asyncio.to_thread(services.registry.delete_alias, task, alias, if_match=if_match)
    return Deleted(id=f"{task}@{alias}", object="task.alias")


@router.delete(
    "/v1/tasks/{task}/versions/{number}",
    operation_id="deleteVersion",
    summary="Delete a version",
    response_model=Deleted,
    responses=WRITE,
)
async def delete_version(task: TaskName, number: Number, services: ServicesDep, if_match: IfMatchDep) -> Any:
    """A version that an alias names cannot go: move the alias first. Requests that already run are not touched."""
    await asyncio.to_thread(services.registry.delete_version, task, number, if_match=if_match)
    return Deleted(id=f"{task}@{number}", object="task.version")


@router.delete(
    "/v1/tasks/{task}",
    operation_id="deleteTask",
    summary="Delete a task with all its versions",
    response_model=Deleted,
    responses=WRITE,
)
async def delete_task(task: TaskName, services: ServicesDep, if_match: IfMatchDep) -> Any:
    """Requests that already run are not touched."""
    await asyncio.to_thread(services.registry.delete_task, task, if_match=if_match)
    return Deleted(id=task, object="task")


async def _add_etag(services: Services, task: str, response: Response) -> None:
    """Another client may have deleted the task in between; what was asked for is done all the same."""
    with suppress(NotFound):
        etag = await asyncio.to_thread(services.registry.etag, task)
        response.headers["etag"] = f'"{etag}"'
