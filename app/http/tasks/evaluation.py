"""`POST /v1/tasks/{task}/evaluate`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.answers.measuring.evaluation import EvaluationObject, evaluation_object
from app.errors import InvalidInput
from app.http.dependencies import EngineCallDep, EvaluatorDep, FinderDep, Serving, ServingDep
from app.http.fields import reply
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, GuardedRoute
from app.http.tasks.examples import MAX_EXAMPLES_BODY_BYTES, ExampleSource, read_examples
from app.http.tasks.runs import CombineField, TaskReference

router = APIRouter(route_class=GuardedRoute, tags=["Tasks"])


class EvaluateRequest(ExampleSource):
    """Examples that the task was not tuned on."""

    record: bool | None = Field(None, description="Keep the figures with the version, at most 256 sets of them.")
    data_name: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="A name for the examples, with `record`; without it that of the file."
    )
    combine: CombineField = None
    with_predictions: bool | None = Field(None, description="Answer with the prediction of each example, in order.")


@router.post(
    "/v1/tasks/{task}/evaluate",
    summary="Measure a task",
    response_model=EvaluationObject,
    responses=describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
    openapi_extra={BODY_LIMIT: MAX_EXAMPLES_BODY_BYTES},
)
async def evaluate_task(
    *,
    task: TaskReference,
    request: EvaluateRequest,
    finder: FinderDep,
    evaluator: EvaluatorDep,
    serving: ServingDep,
    call: EngineCallDep,
) -> Response:
    """Accuracy with its interval, macro F1, precision and recall of each label, confusion and calibration; of a task
    that generates exact match, token F1 and ROUGE-L.

    The examples go through the running engine, a few at a time next to other requests. Inputs that are too long lose
    their end, as in tuning. Answers are greedy. The examples are not kept, the figures only with `record`.
    """
    if request.data_name is not None and not request.record:
        raise InvalidInput("data_name belongs to record", param="data_name")
    target = await finder.find(task, param="task")
    examples = await read_examples(request, serving)
    name = _name_data(serving, request) if request.record else None
    measured = await evaluator.evaluate(target, examples, call, combine=request.combine, data_name=name)
    shown = await asyncio.to_thread(
        evaluation_object, target.model_id, examples, measured, with_predictions=bool(request.with_predictions)
    )
    return reply(shown, exclude_unset=True)


def _name_data(serving: Serving, request: EvaluateRequest) -> str:
    if request.data_name is not None or request.file is None:
        return request.data_name or ""
    return serving.require_tuning().files.get(request.file, param="file").filename
