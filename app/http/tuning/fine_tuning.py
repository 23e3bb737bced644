"""`/v1/fine_tuning/jobs`: tuning jobs that the server runs itself, on the weights it serves with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request

from app.http.dependencies import BackboneDep, ReadinessDep, RegistryDep, TuningDep
from app.http.fields import MAX_ID_CHARS, MAX_PAGE
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.event_stream import EventStream
from app.http.protection.guard import GuardedRoute
from app.http.tuning.fine_tuning_schema import (
    CheckpointList,
    EventList,
    EventObject,
    JobDeleted,
    JobList,
    JobObject,
    JobRequest,
    page_with_ends,
)
from app.http.tuning.job_specs import make_spec, naming_place
from app.jobs.event_log import JobEvent
from app.jobs.job import Job, Order
from app.tuning.job.service import TuningService

MAX_EVENTS_AT_ONCE = 500
JOB = "/{fine_tuning_job_id}"
JobId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, examples=["ftjob-abc123"])]
After = Annotated[str | None, Query(max_length=MAX_ID_CHARS, description="The last id of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries to answer with.")]
READ = describe_statuses(400, 401, 404, 500, 503)
WRITE = describe_statuses(408, 413, 415)
router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=GuardedRoute, tags=["Tuning"], responses=READ)


@router.post(
    "",
    operation_id="createFineTuningJob",
    summary="Learn a task from examples",
    response_model=JobObject,
    responses=WRITE,
)
async def create_job(
    request: JobRequest, backbone: BackboneDep, registry: RegistryDep, readiness: ReadinessDep, tuning: TuningDep
) -> Any:
    """A job tunes prompts for the frozen backbone while it serves, and publishes the best.

    `fine_tuned_model` and every checkpoint are versions that can be called as soon as they are named. Nothing but
    `model` and `training_file` needs to be given.
    """
    readiness.check_accepting()

    def create() -> Job:
        with naming_place(request):
            return tuning.create_job(make_spec(request, backbone.name, registry, tuning.files))

    return await asyncio.to_thread(create)


@router.get("", operation_id="listFineTuningJobs", summary="List jobs", response_model=JobList)
async def list_jobs(request: Request, tuning: TuningDep, after: After = None, limit: Limit = 20) -> Any:
    """Jobs, newest first. `metadata[key]=value` in the query keeps those created with this pair."""
    names = {name: name.removeprefix("metadata[").removesuffix("]") for name in request.query_params}
    wanted = {key: request.query_params[name] for name, key in names.items() if name == f"metadata[{key}]"}

    def has_pairs(job: Job) -> bool:
        return wanted.items() <= (job.spec["metadata"] or {}).items()

    jobs, has_more = await asyncio.to_thread(tuning.jobs.page, after, limit, has_pairs if wanted else None)
    return {"data": jobs, "has_more": has_more}


@router.get(JOB, operation_id="retrieveFineTuningJob", summary="Show a job", response_model=JobObject)
async def retrieve_job(fine_tuning_job_id: JobId, tuning: TuningDep) -> Any:
    """Its progress and its result."""
    return await asyncio.to_thread(tuning.jobs.get, fine_tuning_job_id)


@router.delete(
    JOB,
    operation_id="deleteFineTuningJob",
    summary="Forget a job that has ended",
    response_model=JobDeleted,
    responses=WRITE,
)
async def delete_job(fine_tuning_job_id: JobId, tuning: TuningDep) -> Any:
    """Its events go with it; the versions it published stay."""
    await asyncio.to_thread(tuning.jobs.delete, fine_tuning_job_id)
    return {"id": fine_tuning_job_id}


def _add_order(order: Order, text: str) -> None:
    """The route that gives one order to a job. Args: text: what the order does."""

    async def give_order(fine_tuning_job_id: JobId, tuning: TuningDep) -> Any:
        return await asyncio.to_thread(tuning.give, fine_tuning_job_id, order)

    router.post(
        f"{JOB}/{order}",
        operation_id=f"{order}FineTuningJob",
        summary=f"{order.capitalize()} a job",
        description=text,
        response_model=JobObject,
        responses=WRITE,
    )(give_order)


_add_order(Order.CANCEL, "End it for good. Published checkpoints stay.")
_add_order(Order.PAUSE, "It stops after its present update, and others get their turn until it is resumed.")
_add_order(Order.RESUME, "It continues at the update where it stopped, as if it had never been paused.")


@router.get(
    f"{JOB}/events",
    operation_id="listFineTuningEvents",
    summary="List a job's events, or follow them",
    response_model=EventList,
    responses=STREAMED,
)
async def list_events(
    *,
    fine_tuning_job_id: JobId,
    tuning: TuningDep,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[
        bool, Query(description="Answer with server-sent events, oldest first, until the job ends.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(max_length=MAX_ID_CHARS, description="With stream: the last id that was received.")
    ] = None,
) -> Any:
    """A page of events, newest first; with `stream` past events and then new ones as they happen.

    A broken stream continues after `Last-Event-ID` (or `after`), with nothing missing and nothing twice.
    """
    await asyncio.to_thread(tuning.jobs.get, fine_tuning_job_id)
    if stream:
        tuning.notifier.require_room()
        begin = last_event_id or after
        await asyncio.to_thread(tuning.events.since, fine_tuning_job_id, begin, 1)
        return EventStream(_follow(tuning, fine_tuning_job_id, begin), encode=_dump_event, id_of=lambda event: event.id)
    events, has_more = await asyncio.to_thread(tuning.events.page, fine_tuning_job_id, after, limit)
    return {"data": events, "has_more": has_more}


@router.get(
    f"{JOB}/checkpoints",
    operation_id="listFineTuningCheckpoints",
    summary="List a job's checkpoints",
    response_model=CheckpointList,
)
async def list_checkpoints(fine_tuning_job_id: JobId, tuning: TuningDep, after: After = None, limit: Limit = 10) -> Any:
    """Versions published during the job, newest first. Each can be called, however the job ends."""
    await asyncio.to_thread(tuning.jobs.get, fine_tuning_job_id)
    return page_with_ends(*await asyncio.to_thread(tuning.checkpoints.page, fine_tuning_job_id, after, limit))


async def _follow(tuning: TuningService, job_id: str, after: str | None) -> AsyncGenerator[JobEvent, None]:
    """Events in order, until the job has ended and all of them were sent."""
    with tuning.notifier.listening(job_id) as listener:
        while True:
            job = await asyncio.to_thread(tuning.jobs.get, job_id)
            events = await asyncio.to_thread(tuning.events.since, job_id, after, MAX_EVENTS_AT_ONCE)
            for event in events:
                after = event.id
                yield event
            if not events and job.status.is_final:
                return
            if not events:
                await listener.wait()


def _dump_event(event: JobEvent) -> bytes:
    return EventObject.model_validate(event, from_attributes=True).model_dump_json().encode()
