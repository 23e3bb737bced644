"""What handlers ask FastAPI for. All of these are coroutines: FastAPI runs plain functions on a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Header, Request

from app.answers.call import Call, Readiness
from app.answers.generating.completer import Completer
from app.answers.generating.labels import LabelScorer
from app.answers.generating.runs import RunService
from app.answers.measuring.evaluation import Evaluator
from app.answers.measuring.token_report import TokenReporter
from app.answers.targets import TaskFinder
from app.engine.async_engine import AsyncEngine
from app.errors import TuningUnavailable
from app.http.protection.guard import Guard
from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.telemetry import Metrics
from app.tuning.job.service import TuningService

MAX_TIMEOUT_S: Final = 3600.0
Part = TypeVar("Part")


def _part(kind: type[Part]) -> Any:
    """The object of this class among those that `build_application` was given."""

    async def get(request: Request) -> Part:
        part: Part = request.app.state.parts[kind]
        return part

    return Depends(get)


BackboneDep = Annotated[Backbone, _part(Backbone)]
CompleterDep = Annotated[Completer, _part(Completer)]
EngineDep = Annotated[AsyncEngine, _part(AsyncEngine)]
EvaluatorDep = Annotated[Evaluator, _part(Evaluator)]
FinderDep = Annotated[TaskFinder, _part(TaskFinder)]
GuardDep = Annotated[Guard, _part(Guard)]
LabelsDep = Annotated[LabelScorer, _part(LabelScorer)]
MetricsDep = Annotated[Metrics, _part(Metrics)]
ReadinessDep = Annotated[Readiness, _part(Readiness)]
RegistryDep = Annotated[Registry, _part(Registry)]
ReporterDep = Annotated[TokenReporter, _part(TokenReporter)]
RunsDep = Annotated[RunService, _part(RunService)]


MaybeTuning = TuningService | TuningUnavailable
"""The service, or why this server does not tune."""


@dataclass(frozen=True)
class Serving:
    """Facts about this server.

    Attributes:
        started_at: seconds since 1970.
        timeout_s: deadline of a request that names none.
    """

    started_at: int
    timeout_s: float
    tuning: MaybeTuning

    def require_tuning(self) -> TuningService:
        """Raises TuningUnavailable."""
        if isinstance(self.tuning, TuningUnavailable):
            raise TuningUnavailable(self.tuning.message)
        return self.tuning


ServingDep = Annotated[Serving, _part(Serving)]


async def get_tuning(serving: ServingDep) -> TuningService:
    """Raises TuningUnavailable."""
    return serving.require_tuning()


TuningDep = Annotated[TuningService, Depends(get_tuning)]
TimeoutHeader = Annotated[
    float | None,
    Header(
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description="Seconds from now after which the answer is of no use. Work past it ends with status 504.",
    ),
]


async def get_call(request: Request, x_request_timeout: TimeoutHeader = None) -> Call:
    """Until when the caller waits, and whose computed text it may share."""
    timeout_s: float = x_request_timeout or request.app.state.parts[Serving].timeout_s
    return Call.within(timeout_s, request.state.cache_salt)


CallDep = Annotated[Call, Depends(get_call)]


async def get_engine_call(request: Request, x_request_timeout: TimeoutHeader = None) -> Call:
    """As `get_call`, of a request to the engine. Raises Draining, EngineDead: the server takes none now."""
    request.app.state.parts[Readiness].check_accepting()
    return await get_call(request, x_request_timeout)


EngineCallDep = Annotated[Call, Depends(get_engine_call)]


async def get_if_match(
    if_match: Annotated[
        str | None,
        Header(max_length=256, description="The task's ETag as last read; 412 if it is another one now."),
    ] = None,
) -> str | None:
    """The ETag without its quotes, or `*` for any."""
    return None if if_match is None else if_match.strip().removeprefix("W/").strip('"')


IfMatchDep = Annotated[str | None, Depends(get_if_match)]
