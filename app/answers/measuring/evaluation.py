"""Evaluator: how well a version or an ensemble answers, measured by the running engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from app.answers.ensembles import AnyTarget, Combine, choose_text
from app.answers.generating.labels import LabelChances
from app.answers.measuring.engine_model import EngineModel
from app.errors import InvalidInput
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation, Measurement, require_measurable
from app.measure.served_prompt import ServedPrompt

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.engine.async_engine import AsyncEngine
    from app.model.backbone import Backbone
    from app.registry.registry import Registry

MAX_EXAMPLES: Final = 5000


class Evaluator:
    """Measures with the engine."""

    def __init__(self, backbone: Backbone, engine: AsyncEngine) -> None:
        self._backbone = backbone
        self._engine = engine

    def model(self, flow: str, call: Call) -> EngineModel:
        """The engine as a source of answers. Args: flow: whose fair share the work counts against."""
        return EngineModel(self._engine, self._backbone, flow=flow, call=call)

    async def evaluate_asked(
        self,
        target: AnyTarget,
        examples: Sequence[Example],
        combine: Combine | None,
        call: Call,
        *,
        record: bool = False,
    ) -> Evaluation:
        """As a request asks for it.

        Args: record: whether the figures are to be kept afterwards (`record_evaluation`).

        Raises InvalidInput: `combine` or `record` does not apply; and what `evaluate` raises.
        """
        how = target.choose_combine(combine)
        if record and target.is_ensemble:
            raise InvalidInput("figures are kept with one version, and an ensemble is several", param="record")
        if record and target.members[0].prompt is None:
            raise InvalidInput("the backbone is no version, which figures could be kept with", param="record")
        return await self.evaluate(target, examples, call, combine=how)

    async def evaluate(
        self, target: AnyTarget, examples: Sequence[Example], call: Call, *, combine: Combine | None = None
    ) -> Evaluation:
        """Args: combine: of an ensemble, whose members are measured one after the other.

        Raises what Measurement and EngineModel raise.
        """
        if target.is_ensemble:
            return await self._evaluate_ensemble(target, examples, combine, call)
        [single] = target.members
        asked = Measurement(ServedPrompt.of(single.prompt, single), examples)
        return await self.model(single.flow, call).evaluate(asked)

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


def record_evaluation(
    registry: Registry, target: AnyTarget, examples: Sequence[Example], measured: Evaluation, name: str
) -> None:
    """Keep the figures, as `evaluate_asked` was told. Raises what `Registry.record_evaluation` raises."""
    [single] = target.members
    assert single.prompt is not None
    version = registry.resolve(single.model_id)
    registry.record_evaluation(version, measured.record(single.prompt.digest, hash_examples(examples), name))
