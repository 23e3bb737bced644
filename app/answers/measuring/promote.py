"""Promotion on the server: the engine measures what a gate asks for, and threads wait for the registry's disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from app.answers.measuring.evaluation import engine_model
from app.measure.evaluation import Measurement
from app.measure.promote import Promotion, advance

if TYPE_CHECKING:
    from app.answers.readiness import Services

Result = TypeVar("Result")


async def run_promotion(services: Services, task: str, promotion: Promotion[Result], deadline_s: float) -> Result:
    """What a promotion of `app.measure.promote` returns. Args: deadline_s: seconds from now for each measurement.

    Raises GateFailed, what the promotion raises, and what `EngineModel.evaluate` raises.
    """
    step = await asyncio.to_thread(advance, promotion, None)
    while isinstance(step, Measurement):
        services.check_accepting()
        measured = await engine_model(services, task).evaluate(step, deadline_s)
        step = await asyncio.to_thread(advance, promotion, measured)
    return step.result
