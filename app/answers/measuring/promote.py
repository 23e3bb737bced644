"""Promoter: on the server the engine measures what a gate asks for, and threads wait for the registry's disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from app.measure.evaluation import Measurement
from app.measure.promote import GateRequest, Promotion, advance, promote, publish

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.answers.measuring.evaluation import Evaluator
    from app.registry.aliases import AliasTarget
    from app.registry.publication import Publication
    from app.registry.registry import Registry
    from app.registry.version import Version

Result = TypeVar("Result")


class Promoter:
    """Every method raises what the promotion of `app.measure.promote` raises, and what `EngineModel.evaluate` does."""

    def __init__(self, registry: Registry, evaluator: Evaluator) -> None:
        self._registry = registry
        self._evaluator = evaluator

    async def move_alias(
        self,
        task: str,
        alias: str,
        target: AliasTarget,
        *,
        gate: GateRequest | None,
        force: bool,
        if_match: str | None,
        call: Call,
    ) -> None:
        """See `app.measure.promote.promote`."""
        promotion = promote(self._registry, task, alias, target, gate=gate, force=force, if_match=if_match)
        await self._run(task, promotion, call)

    async def publish(
        self,
        task: str,
        publication: Publication,
        *,
        alias: str | None,
        force: bool,
        if_match: str | None,
        call: Call,
    ) -> Version:
        """See `app.measure.promote.publish`."""
        promotion = publish(self._registry, task, publication, alias=alias, force=force, if_match=if_match)
        return await self._run(task, promotion, call)

    async def _run(self, task: str, promotion: Promotion[Result], call: Call) -> Result:
        step = await asyncio.to_thread(advance, promotion, None)
        while isinstance(step, Measurement):
            measured = await self._evaluator.model(task, call).evaluate(step)
            step = await asyncio.to_thread(advance, promotion, measured)
        return step.result
