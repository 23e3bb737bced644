"""Evaluator: how well a version or an ensemble answers, measured by the running engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeVar

from app.answers.call import Call
from app.answers.generating.labels import LabelChances
from app.answers.measuring.engine_model import EngineModel
from app.answers.readiness import Readiness
from app.answers.targets import AnyTarget, Combine, Target, choose_text
from app.engine.async_engine import AsyncEngine
from app.errors import InvalidInput
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation, Measurement, require_measurable
from app.measure.promote import Promotion, advance
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.registry.registry import Registry

MAX_EXAMPLES: Final = 5000
Result = TypeVar("Result")


class Evaluator:
    """Measures with the engine, and keeps the figures on request."""

    def __init__(self, backbone: Backbone, registry: Registry, engine: AsyncEngine) -> None:
        self._backbone = backbone
        self._registry = registry
        self._engine = engine

    def model(self, flow: str, call: Call) -> EngineModel:
        """The engine as a source of answers. Args: flow: whose fair share the work counts against."""
        return EngineModel(self._engine, self._backbone, flow=flow, call=call)

    async def evaluate(
        self,
        target: AnyTarget,
        examples: Sequence[Example],
        call: Call,
        *,
        combine: Combine | None = None,
        data_name: str | None = None,
    ) -> Evaluation:
        """Args:
            combine: of an ensemble; None takes the average of labels, and the vote of texts.
            data_name: keeps the figures with the version, as those on examples of this name; None keeps nothing.

        Raises InvalidInput: `combine` does not apply, or there is no one version to keep figures with; and what
        Measurement, EngineModel and `Registry.record_evaluation` raise.
        """
        how = target.choose_combine(combine)
        if data_name is not None:
            _require_version(target)
        if target.is_ensemble:
            return await self._evaluate_ensemble(target, examples, how, call)
        [single] = target.members
        asked = Measurement(ServedPrompt.of(single.prompt, single), examples)
        measured = await self.model(single.flow, call).evaluate(asked)
        if data_name is not None:
            await asyncio.to_thread(self._record, single, examples, measured, data_name)
        return measured

    async def promote(self, task: str, promotion: Promotion[Result], call: Call, readiness: Readiness) -> Result:
        """What a promotion of `app.measure.promote` returns; threads wait for the registry's disk.

        Raises what it raises; and if something has to be measured, what `Readiness.check_accepting` and
        `EngineModel.evaluate` raise.
        """
        step = await asyncio.to_thread(advance, promotion, None)
        while isinstance(step, Measurement):
            readiness.check_accepting()
            measured = await self.model(task, call).evaluate(step)
            step = await asyncio.to_thread(advance, promotion, measured)
        return step.result

    async def _evaluate_ensemble(
        self, ensemble: AnyTarget, examples: Sequence[Example], combine: Combine | None, call: Call
    ) -> Evaluation:
        labels = ensemble.labels
        require_measurable(examples, labels)
        inputs, targets = [example.input for example in examples], [example.target for example in examples]
        members = [(self.model(each.flow, call), ServedPrompt.of(each.prompt, each)) for each in ensemble.members]
        if not labels:
            texts = [await model.generate(served, inputs) for model, served in members]
            chosen = [answers[choose_text(answers)] for answers in zip(*texts, strict=True)]
            return await asyncio.to_thread(Evaluation.of_texts, chosen, targets)
        scores = [await model.score(served, inputs) for model, served in members]
        temperatures = [member.label_temperature for member in ensemble.members]
        combined = [
            ensemble.combine_chances(list(map(LabelChances.from_log_likelihoods, found, temperatures)), combine)
            for found in zip(*scores, strict=True)
        ]
        if combine is Combine.VOTE:
            return await asyncio.to_thread(
                Evaluation.of_labels, [labels[best] for best, _ in combined], labels, targets
            )
        values = [chances.to_log_likelihoods() for _, chances in combined]
        return await asyncio.to_thread(Evaluation.of_scores, values, labels, targets)

    def _record(self, target: Target, examples: Sequence[Example], measured: Evaluation, data_name: str) -> None:
        assert target.prompt is not None
        recorded = measured.record(target.prompt.digest, hash_examples(examples), data_name)
        self._registry.record_evaluation(self._registry.resolve(target.model_id), recorded)


def _require_version(target: AnyTarget) -> None:
    if target.is_ensemble:
        raise InvalidInput("figures are kept with one version, and an ensemble is several", param="record")
    if target.members[0].prompt is None:
        raise InvalidInput("the backbone is no version, which figures could be kept with", param="record")
