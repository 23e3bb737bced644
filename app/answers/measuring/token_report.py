"""The report on a version's virtual tokens, put together from the registry, the backbone and the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.answers.measuring.token_effects import measure_effects
from app.answers.naming import naming
from app.answers.targets import resolve_prompt, version_target
from app.insight.report import PromptReport
from app.insight.similarity import compare_prompts
from app.insight.view import view_prompt
from app.measure.dataset import Example

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.answers.readiness import Services
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt


async def report_tokens(
    services: Services,
    task: str,
    *,
    num_nearest: int | None = None,
    compare: str | None = None,
    examples: Sequence[Example] = (),
    call: Call,
) -> PromptReport:
    """Args:
        compare: name of another version; None compares with nothing.
        examples: to measure on what the virtual tokens do; without them the engine is asked nothing.

    Raises InvalidInput, NotFound, and what `measure_effects` raises.
    """
    with naming("task"):
        version, prompt = await asyncio.to_thread(resolve_prompt, services, task)
    report = await asyncio.to_thread(_look, services, version, prompt, num_nearest, compare)
    if not examples:
        return report
    target = version_target(version, prompt)
    return replace(
        report,
        effects=await measure_effects(services.evaluator, services.backbone, target, report.view, examples, call),
    )


def _look(
    services: Services, version: Version, prompt: TaskPrompt, num_nearest: int | None, compare: str | None
) -> PromptReport:
    """What needs no example."""
    initial = services.registry.initial(version)
    view = view_prompt(services.backbone, prompt, num_nearest=num_nearest, initial=initial)
    if compare is None:
        return PromptReport(version.id, view)
    with naming("compare"):
        other_version, other = resolve_prompt(services, compare)
    return PromptReport(version.id, view, other_version.id, compare_prompts(prompt, other))
