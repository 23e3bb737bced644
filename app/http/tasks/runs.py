"""`POST /v1/tasks/{task}/run` and `POST /v1/run`: a task used for what it was tuned for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path
from pydantic import ConfigDict, Field, model_validator
from starlette.responses import Response

from app.answers.generating.runs import Run, RunObject, RunPiece, RunResult, Usage
from app.answers.targets import AnyTarget, Combine
from app.answers.views import Reply
from app.engine.async_engine import all_of
from app.errors import InvalidInput, naming_text
from app.http.dependencies import EngineCallDep, FinderDep, RunsDep
from app.http.fields import MAX_MODEL_CHARS, ModelName, Sampling, Strict, Text, UsageObject, reply
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.event_stream import EventStream, TextChunk, dump_set
from app.http.protection.guard import GuardedRoute

MAX_INPUTS: Final = 1000
CombineField = Annotated[
    Combine | None,
    Field(
        strict=False,
        description="How the members of an ensemble, such as `sentiment@1+2+3`, become one answer: by the average of "
        "their probabilities, or by a vote. Without it labels are averaged, and texts are voted on.",
    ),
]
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


class RunRequest(Sampling):
    """One input or several. The sampling fields are for tasks that generate; a task with labels refuses them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"input": "a gorgeous, witty film"}, {"inputs": ["dull and long", "I laughed throughout"]}],
            "oneOf": [{"required": ["input"]}, {"required": ["inputs"]}],
        }
    )

    input: Text | None = Field(None, description="What the task's template takes in.")
    inputs: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] | None = Field(
        None, description="Several, answered in one batch and in this order."
    )
    stream: bool | None = Field(
        None, description="Answer with server-sent events; for one input to a task that generates."
    )
    combine: CombineField = None

    @model_validator(mode="after")
    def _check_one(self) -> RunRequest:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("needs input or inputs, one of them")
        return self

    @property
    def texts(self) -> list[str]:
        return [self.input] if self.input is not None else list(self.inputs or ())


class RunItem(Strict):
    """One input to one task."""

    task: ModelName
    input: Text
    combine: CombineField = None


MixedRunRequest = Annotated[
    list[RunItem],
    Field(
        min_length=1,
        max_length=MAX_INPUTS,
        examples=[[{"task": "sentiment", "input": "a gorgeous film"}, {"task": "language", "input": "guten Morgen"}]],
    ),
]


class RunReply(RunObject):
    """The answer to one input."""

    usage: UsageObject


class RunsReply(Reply):
    """The answers to several inputs, in their order."""

    results: list[RunObject]
    usage: UsageObject


class RunChunk(Reply):
    """One event of a streamed run: a piece of text, or at the end the reason and the usage."""

    model: str
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: UsageObject | None = None


@router.post(
    "/v1/tasks/{task}/run",
    summary="Use a task",
    response_model=RunReply | RunsReply,
    responses=STREAMED | STATUSES,
)
async def run_task(
    task: TaskReference, request: RunRequest, finder: FinderDep, runs: RunsDep, call: EngineCallDep
) -> Response:
    """A label with probabilities from a task with labels, a text from one that generates.

    `input` answers with one object, `inputs` with `results` in their order, all computed in one batch.
    """
    target = await finder.find(task, param="task")
    combine = target.choose_combine(request.combine)
    given = request.given_sampling()
    if request.stream:
        if request.input is None:
            raise InvalidInput("stream takes a single input", param="stream")
        run = Run(target, request.input, "input", combine)
        with naming_text(run.param):
            return await EventStream.started(runs.stream(run, given, call), _piece_writer(target.model_id))
    names = ["input"] if request.inputs is None else [f"inputs.{index}" for index in range(len(request.texts))]
    asked = [Run(target, text, name, combine) for text, name in zip(request.texts, names, strict=True)]
    results = await runs.run_all(asked, given, call)
    if request.inputs is None:
        fields = {name: getattr(results[0].answer, name) for name in results[0].answer.model_fields_set}
        return reply(RunReply(**fields, usage=UsageObject.of(results[0].usage)), exclude_unset=True)
    return _reply_all(results)


@router.post(
    "/v1/run",
    summary="Use several tasks in one call",
    response_model=RunsReply,
    responses=STATUSES,
)
async def run_mixed(items: MixedRunRequest, finder: FinderDep, runs: RunsDep, call: EngineCallDep) -> Response:
    """Each item names its own task; all are computed in one batch, and the results keep their order."""
    first_places = {item.task: index for index, item in reversed(list(enumerate(items)))}
    found = await all_of(finder.find(name, param=f"items.{index}.task") for name, index in first_places.items())
    targets = dict(zip(first_places, found, strict=True))
    asked = [_run_of(targets[item.task], item, f"items.{index}") for index, item in enumerate(items)]
    return _reply_all(await runs.run_all(asked, {}, call))


def _run_of(target: AnyTarget, item: RunItem, place: str) -> Run:
    combine = target.choose_combine(item.combine, param=f"{place}.combine")
    return Run(target, item.input, f"{place}.input", combine)


def _reply_all(results: Sequence[RunResult]) -> Response:
    usage = UsageObject.of(Usage.total([result.usage for result in results]))
    return reply(RunsReply(results=[result.answer for result in results], usage=usage), exclude_unset=True)


def _piece_writer(model_id: str) -> Callable[[RunPiece], bytes]:
    """What turns the pieces of this model's text into JSON."""
    plain = TextChunk(lambda text: RunChunk(model=model_id, text=text))

    def write(piece: RunPiece) -> bytes:
        if piece.usage is None:
            return plain.with_text(piece.text)
        usage = UsageObject.of(piece.usage)
        return dump_set(RunChunk(model=model_id, text="", finish_reason=piece.finish_reason, usage=usage))

    return write
