"""Evaluator: how well a version or an ensemble answers, measured by the running engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from app.answers.ensembles import Combine, Ensemble, choose_combine, choose_text, combine_chances
from app.answers.generating.labels import LabelChances
from app.answers.measuring.engine_model import EngineModel
from app.answers.targets import Target
from app.errors import InvalidInput
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation, Measurement, require_measurable
from app.measure.served_prompt import ServedPrompt

if TYPE_CHECKING:
    from app.answers.call import Call
    from app.answers.readiness import Services
    from app.engine.async_engine import AsyncEngine
    from app.http.tasks.evaluation_schema import ExampleItem, ExampleSource
    from app.model.backbone import Backbone
    from app.registry.registry import Registry

MAX_EXAMPLES: Final = 5000


class Evaluator:
    """Args: check_accepting: called before the engine is asked; raises Draining, EngineDead."""

    def __init__(self, backbone: Backbone, engine: AsyncEngine, check_accepting: Callable[[], None]) -> None:
        self._backbone = backbone
        self._engine = engine
        self._check_accepting = check_accepting

    def model(self, flow: str, call: Call) -> EngineModel:
        """The engine as a source of answers. Args: flow: whose fair share the work counts against."""
        self._check_accepting()
        return EngineModel(self._engine, self._backbone, flow=flow, call=call)

    async def evaluate_asked(
        self,
        target: Target | Ensemble,
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
        how = choose_combine(target, combine)
        if record and isinstance(target, Ensemble):
            raise InvalidInput("figures are kept with one version, and an ensemble is several", param="record")
        if record and isinstance(target, Target) and target.prompt is None:
            raise InvalidInput("the backbone is no version, which figures could be kept with", param="record")
        return await self.evaluate(target, examples, call, combine=how)

    async def evaluate(
        self,
        target: Target | Ensemble,
        examples: Sequence[Example],
        call: Call,
        *,
        combine: Combine = Combine.AVERAGE,
    ) -> Evaluation:
        """Args: combine: of an ensemble, whose members are measured one after the other.

        Raises what Measurement and EngineModel raise.
        """
        if isinstance(target, Ensemble):
            return await self._evaluate_ensemble(target, examples, combine, call)
        asked = Measurement(ServedPrompt.of(target.prompt, target), examples)
        return await self.model(target.flow, call).evaluate(asked)

    async def _evaluate_ensemble(
        self, ensemble: Ensemble, examples: Sequence[Example], combine: Combine, call: Call
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
            combine_chances(list(map(LabelChances.from_log_likelihoods, found, temperatures)), combine)
            for found in zip(*scores, strict=True)
        ]
        if combine is Combine.VOTE:
            return await asyncio.to_thread(
                Evaluation.of_labels, [labels[best] for best, _ in combined], labels, targets
            )
        values = [chances.to_log_likelihoods() for _, chances in combined]
        return await asyncio.to_thread(Evaluation.of_scores, values, labels, targets)


def record_evaluation(
    registry: Registry, target: Target | Ensemble, examples: Sequence[Example], measured: Evaluation, name: str
) -> None:
    """Keep the figures, as `evaluate_asked` was told. Raises what `Evaluations.record` raises."""
    assert isinstance(target, Target)
    assert target.prompt is not None
    version = registry.resolve(target.model_id)
    registry.evaluations.record(version, measured.record(target.prompt.digest, hash_examples(examples), name))


async def find_examples(services: Services, source: ExampleSource) -> Sequence[Example]:
    """Of a request: its own, or those of an upload.

    Raises InvalidInput: a target is blank, or there are too many. NoSuchFile, TuningUnavailable.
    """
    if source.file is None:
        return _read_items(source.examples or ())
    dataset = await asyncio.to_thread(services.require_tuning().files.load, source.file, param="file")
    if len(dataset.examples) > MAX_EXAMPLES:
        raise InvalidInput(
            f"the file has {len(dataset.examples)} examples, and a request takes {MAX_EXAMPLES}", param="file"
        )
    return dataset.examples


def _read_items(items: Sequence[ExampleItem]) -> list[Example]:
    for index, item in enumerate(items):
        if not item.target.strip():
            raise InvalidInput("a target must not be blank", param=f"examples.{index}.target")
    return [Example(item.input, item.target.strip()) for item in items]
