"""`POST /v1/tasks/{task}/run` and `POST /v1/run`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.answers.ensembles import Ensemble, choose_combine, find_answerer
from app.answers.generating.generation import Begun
from app.answers.generating.runs import Run, run_all, stream_run, total_usage
from app.answers.naming import naming_text
from app.answers.targets import Target
from app.engine.gather import all_of
from app.errors import InvalidInput
from app.http.fields import MAX_MODEL_CHARS
from app.http.protection.deps import DeadlineDep, ServicesDep
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.event_stream import EventStream
from app.http.protection.guard import GuardedRoute
from app.http.tasks.runs_schema import MixedRunRequest, RunItem, RunReply, RunRequest, RunsReply

router = APIRouter(route_class=GuardedRoute, tags=["Tasks"])
STATUSES = describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504)
TaskReference = Annotated[
    str,
    Path(
        min_length=1,
        max_length=MAX_MODEL_CHARS,
        description="A task, a version of it, or an ensemble: `sentiment`, `sentiment@3`, `sentiment@1+2+3`.",
        examples=["sentiment"],
    ),
]


@router.post(
    "/v1/tasks/{task}/run",
    operation_id="runTask",
    summary="Use a task",
    response_model=RunReply | RunsReply,
    response_model_exclude_unset=True,
    responses=STREAMED | STATUSES,
)
async def run_task(task: TaskReference, request: RunRequest, services: ServicesDep, deadline_s: DeadlineDep) -> Any:
    """A label with probabilities from a task with labels, a text from one that generates.

    `input` answers with one object, `inputs` with `results` in their order, all computed in one batch.
    """
    target = await find_answerer(services, task, param="task")
    combine = choose_combine(target, request.combine)
    given = request.given_sampling()
    if request.stream:
        if request.input is None:
            raise InvalidInput("stream takes a single input", param="stream")
        run = Run(target, request.input, "input", combine)
        with naming_text(run.param):
            return EventStream(await Begun.wait(stream_run(services, run, given, deadline_s)))
    names = ["input"] if request.inputs is None else [f"inputs.{index}" for index in range(len(request.texts))]
    runs = [Run(target, text, name, combine) for text, name in zip(request.texts, names, strict=True)]
    outcomes = await run_all(services, runs, given, deadline_s)
    usage = total_usage(outcomes)
    if request.inputs is None:
        return RunReply(**outcomes[0].result.model_dump(exclude_unset=True), usage=usage)
    return RunsReply(results=[outcome.result for outcome in outcomes], usage=usage)


@router.post(
    "/v1/run",
    operation_id="runMixed",
    summary="Use several tasks in one call",
    response_model=RunsReply,
    response_model_exclude_unset=True,
    responses=STATUSES,
)
async def run_mixed(items: MixedRunRequest, services: ServicesDep, deadline_s: DeadlineDep) -> Any:
    """Each item names its own task; all are computed in one batch, and the results keep their order."""
    first_places = {item.task: index for index, item in reversed(list(enumerate(items)))}
    found = await all_of(
        find_answerer(services, name, param=f"items.{index}.task") for name, index in first_places.items()
    )
    targets = dict(zip(first_places, found, strict=True))
    runs = [_run_of(targets[item.task], item, f"items.{index}") for index, item in enumerate(items)]
    outcomes = await run_all(services, runs, {}, deadline_s)
    return RunsReply(results=[outcome.result for outcome in outcomes], usage=total_usage(outcomes))


def _run_of(target: Target | Ensemble, item: RunItem, place: str) -> Run:
    combine = choose_combine(target, item.combine, param=f"{place}.combine")
    return Run(target, item.input, f"{place}.input", combine)
