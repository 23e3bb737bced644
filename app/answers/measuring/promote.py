"""Promoter: on the server the engine measures what a gate asks for, and threads wait for the registry's disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from app.measure.evaluation import Measurement
from app.measure.promote import Promotion, advance

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.answers.measuring.evaluation import Evaluator
    from app.answers.readiness import Readiness

Result = TypeVar("Result")


class Promoter:
    """Runs the promotions of `app.measure.promote`."""

    def __init__(self, evaluator: Evaluator, readiness: Readiness) -> None:
        self._evaluator = evaluator
        self._readiness = readiness

    async def run(self, task: str, promotion: Promotion[Result], call: Call) -> Result:
        """What the promotion returns.

        Raises what it raises; and if something has to be measured, what `Readiness.check_accepting` and
        `EngineModel.evaluate` raise.
        """
        step = await asyncio.to_thread(advance, promotion, None)
        while isinstance(step, Measurement):
            self._readiness.check_accepting()
            measured = await self._evaluator.model(task, call).evaluate(step)
            step = await asyncio.to_thread(advance, promotion, measured)
        return step.result
