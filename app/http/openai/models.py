"""`/v1/models`: what `model` can name, and a way to delete it that OpenAI's clients know.

As in openai `types/model.py`; `root`, `parent` and `max_model_len` as vLLM adds them.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from starlette.responses import Response

from app.answers.views import Reply
from app.errors import InvalidInput, naming
from app.http.dependencies import BackboneDep, EngineDep, IfMatchDep, RegistryDep, ServingDep
from app.http.fields import MAX_MODEL_CHARS, reply
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import GuardedRoute
from app.registry.reference import JOINT, Reference
from app.registry.version import Version

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])
ModelName = Annotated[str, Path(min_length=1, max_length=MAX_MODEL_CHARS, examples=["sentiment"])]


class Model(Reply):
    """Something a request's `model` can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["softswap"] = "softswap"
    root: str
    parent: str | None
    max_model_len: int

    @classmethod
    def of_backbone(cls, name: str, *, created: int, max_len: int) -> Model:
        return cls(id=name, created=created, root=name, parent=None, max_model_len=max_len)

    @classmethod
    def of_version(cls, name: str, version: Version, *, parent: str, max_len: int) -> Model:
        """Args: name: what the caller calls it; max_len: positions of the backbone."""
        return cls(
            id=name,
            created=version.created_at,
            root=version.id,
            parent=parent,
            max_model_len=max_len - version.num_virtual_tokens,
        )


class ModelDeleted(Reply):
    """As in openai `types/model_deleted.py`."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Reply):
    """The backbone, and every task under its bare name."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get(
    "/v1/models", summary="List what `model` can name", response_model=ModelList, responses=describe_statuses(401, 500)
)
async def list_models(backbone: BackboneDep, registry: RegistryDep, engine: EngineDep, serving: ServingDep) -> Response:
    """The backbone, and every task that has a live version for it. `/v1/tasks` has the others too."""
    summaries = await asyncio.to_thread(registry.tasks)
    live = [summary.live for summary in summaries if summary.live is not None]
    max_len = engine.config.max_model_len
    models = [Model.of_version(version.task, version, parent=backbone.name, max_len=max_len) for version in live]
    return reply(
        ModelList(data=[Model.of_backbone(backbone.name, created=serving.started_at, max_len=max_len), *models])
    )


@router.get(
    "/v1/models/{model:path}",
    summary="Show what a name means now",
    response_model=Model,
    responses=describe_statuses(400, 401, 404, 500),
)
async def retrieve_model(
    model: ModelName, backbone: BackboneDep, registry: RegistryDep, engine: EngineDep, serving: ServingDep
) -> Response:
    """A task, a version or alias of it, or the backbone. `root` is the version that would answer."""
    max_len = engine.config.max_model_len
    if model == backbone.name:
        return reply(Model.of_backbone(model, created=serving.started_at, max_len=max_len))
    with naming("model"):
        version = await asyncio.to_thread(registry.resolve, model)
    return reply(Model.of_version(model, version, parent=backbone.name, max_len=max_len))


@router.delete(
    "/v1/models/{model:path}",
    summary="Delete a task, or a version of it",
    response_model=ModelDeleted,
    responses=describe_statuses(400, 401, 404, 408, 412, 413, 415, 500),
)
async def delete_model(
    model: ModelName, backbone: BackboneDep, registry: RegistryDep, if_match: IfMatchDep
) -> Response:
    """`sentiment` is the task with all its versions, as under `/v1/tasks/{task}`; `sentiment@3` is that version alone,
    which cannot go while an alias names it. The backbone stays. Requests that already run are not affected.
    """
    if model == backbone.name:
        raise InvalidInput("the backbone is what this server serves; it cannot be deleted", param="model")
    if JOINT in model:
        raise InvalidInput("an ensemble is kept nowhere; delete its versions one by one", param="model")
    with naming("model"):
        named = Reference.parse(model)
        if named.number is not None:
            await asyncio.to_thread(registry.delete_version, named.task, named.number, if_match=if_match)
        elif model == named.task:
            await asyncio.to_thread(registry.delete_task, named.task, if_match=if_match)
        else:
            raise InvalidInput(f"give the task's name, or a version's number as in {named.task}@3", param="model")
    return reply(ModelDeleted(id=model))
