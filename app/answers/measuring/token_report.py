"""TokenReporter: the report on a version's virtual tokens, put together from registry, backbone and engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.answers.measuring.token_effects import measure_effects
from app.answers.targets import Target
from app.insight.report import PromptReport, view_prompt
from app.insight.similarity import compare_prompts
from app.measure.dataset import Example

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.answers.measuring.evaluation import Evaluator
    from app.answers.targets import TaskFinder
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt


class TokenReporter:
    """Looks at prompts, and measures what their virtual tokens do."""

    def __init__(self, backbone: Backbone, registry: Registry, finder: TaskFinder, evaluator: Evaluator) -> None:
        self._backbone = backbone
        self._registry = registry
        self._finder = finder
        self._evaluator = evaluator

    async def report(
        self,
        task: str,
        *,
        num_nearest: int | None = None,
        compare: str | None = None,
        examples: Sequence[Example] = (),
        call: Call,
    ) -> PromptReport:
        """Args:
            compare: name of another version; None compares with nothing.
            examples: to measure on what the virtual tokens do; without them the engine is not used.

        Raises InvalidInput, NotFound, and what `measure_effects` raises.
        """
        version, prompt = await self._finder.find_version(task, param="task")
        report = await asyncio.to_thread(self._look, version, prompt, num_nearest)
        if compare is not None:
            other_version, other = await self._finder.find_version(compare, param="compare")
            difference = await asyncio.to_thread(compare_prompts, prompt, other, other_version.id)
            report = replace(report, difference=difference)
        if not examples:
            return report
        target = Target.of_version(version, prompt)
        effects = await measure_effects(self._evaluator, self._backbone, target, report.view, examples, call)
        return replace(report, effects=effects)

    def _look(self, version: Version, prompt: TaskPrompt, num_nearest: int | None) -> PromptReport:
        """What needs neither another version nor an example."""
        initial = self._registry.initial(version)
        return PromptReport(version.id, view_prompt(self._backbone, prompt, num_nearest=num_nearest, initial=initial))
