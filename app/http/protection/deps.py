"""What handlers ask FastAPI for. All of these are coroutines: FastAPI runs plain functions on a thread."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Header, Request

from app.answers.readiness import Services
from app.http.protection.guard import Guard
from app.http.protection.upload_limits import UploadLimits
from app.tuning.job.service import TuningService

MAX_TIMEOUT_S: Final = 3600.0


async def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


async def get_tuning(services: ServicesDep) -> TuningService:
    """Raises TuningUnavailable."""
    return services.require_tuning()


TuningDep = Annotated[TuningService, Depends(get_tuning)]


async def get_cache_salt(request: Request) -> str:
    """Of the caller's key: computed text is shared only among requests of the same salt. See `ApiKeys.check`."""
    salt: str = request.state.cache_salt
    return salt


CacheSaltDep = Annotated[str, Depends(get_cache_salt)]


async def get_uploads(request: Request) -> UploadLimits:
    guard: Guard = request.app.state.guard
    return guard.uploads


UploadsDep = Annotated[UploadLimits, Depends(get_uploads)]


async def get_deadline_s(
    services: ServicesDep,
    x_request_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            le=MAX_TIMEOUT_S,
            allow_inf_nan=False,
            description="Seconds from now after which the answer is of no use. Work past it ends with status 504.",
        ),
    ] = None,
) -> float:
    return x_request_timeout or services.default_timeout_s


DeadlineDep = Annotated[float, Depends(get_deadline_s)]


async def get_if_match(
    if_match: Annotated[
        str | None,
        Header(max_length=256, description="The task's ETag as last read; 412 if it is another one now."),
    ] = None,
) -> str | None:
    """The ETag without its quotes, or `*` for any."""
    return None if if_match is None else if_match.strip().removeprefix("W/").strip('"')


IfMatchDep = Annotated[str | None, Depends(get_if_match)]
