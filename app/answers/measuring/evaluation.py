"""Evaluator: how well a version or an ensemble answers, measured by the engine next to the requests it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Literal, TypeVar

from pydantic import Field

from app.answers.call import Call, Readiness
from app.answers.generating.labels import LabelChances
from app.answers.targets import AnyTarget, Combine, Target, choose_text
from app.answers.views import Reply
from app.engine.admission import EngineRequest, ScoringPlan
from app.engine.async_engine import AsyncEngine, all_of
from app.errors import InvalidInput
from app.measure.calibration import ConfidenceBin
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation, Measurement, require_measurable
from app.measure.metrics import LabelScore
from app.measure.promote import Promotion, advance
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import encode_labels
from app.registry.registry import Registry

MAX_EXAMPLES: Final = 5000
Result = TypeVar("Result")
MAX_SEQUENCES_AT_ONCE = 32
"""What one evaluation has with the engine at a time: enough to fill batches, too few to delay other requests."""


class CalibrationObject(Reply):
    """What the probabilities are worth. Their expected calibration error is `metrics.ece`."""

    temperature: float = Field(description="The version's, by which these probabilities are made.")
    bins: tuple[ConfidenceBin, ...] = Field(description="Those that hold examples, of 15 of equal width.")


class EvaluationObject(Reply):
    """The figures. Tasks with labels have `labels`, `confusion` and `calibration`; a vote is not calibrated."""

    object: Literal["task.evaluation"] = "task.evaluation"
    model: str = Field(description="The version that was evaluated; of an ensemble all members.")
    data_sha256: str = Field(description="Of the examples, whatever form they came in.")
    main_metric: str
    metrics: dict[str, float]
    labels: tuple[LabelScore, ...] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None, description="Counts, targets by predictions, in `labels`' order."
    )
    calibration: CalibrationObject | None = None
    predictions: tuple[str, ...] | None = None
    warnings: tuple[str, ...] | None = Field(None, description="What should be looked at, if anything.")


def evaluation_object(
    model_id: str, examples: Sequence[Example], measured: Evaluation, *, with_predictions: bool = False
) -> EvaluationObject:
    """Dump it without the fields that are not set."""
    found = EvaluationObject.given_in(measured)
    if measured.labels:
        found["labels"] = measured.per_label
    if not with_predictions:
        del found["predictions"]
    warning = measured.say_low_mass()
    if warning is not None:
        found["warnings"] = (warning,)
    return EvaluationObject(model=model_id, data_sha256=hash_examples(examples), **found)


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


class EngineModel:
    """The engine's answers, for one call. The plain model (`app.measure.plain_model`) finds the same ones.

    Every method raises InvalidInput: the prompt leaves no room for a text; and what `AsyncEngine.score` and `generate`
    raise.

    Args: flow: whose fair share the work counts against.
    """

    def __init__(self, engine: AsyncEngine, backbone: Backbone, *, flow: str, call: Call) -> None:
        self._engine = engine
        self._backbone = backbone
        self._flow = flow
        self._call = call

    async def evaluate(self, asked: Measurement) -> Evaluation:
        if asked.served.labels:
            scores = await self.score(asked.served, asked.inputs)
            return await asyncio.to_thread(asked.evaluate_scores, scores)
        texts = await self.generate(asked.served, asked.inputs)
        return await asyncio.to_thread(asked.evaluate_texts, texts)

    async def score(self, served: ServedPrompt, inputs: Sequence[str]) -> list[list[float]]:
        """log P(label | prompt, text) of every label for every input, natural logarithm."""
        label_ids = await asyncio.to_thread(encode_labels, self._backbone, served.template, served.labels)
        plan = await asyncio.to_thread(self._engine.plan_scoring, label_ids)
        texts = await self._encode(served, inputs, max(map(len, label_ids)))
        num_sequences = self._engine.num_scored_at_once(plan.num_sequences)
        scores = (self._score_after(served, text, plan) for text in texts)
        return await all_of(scores, at_once=self._num_at_once(num_sequences))

    async def generate(self, served: ServedPrompt, inputs: Sequence[str]) -> list[str]:
        """The likeliest answers, each up to its stop string, blanks trimmed."""
        texts = await self._encode(served, inputs, served.max_new_tokens)
        answers = (self._generate_after(served, text) for text in texts)
        return await all_of(answers, at_once=self._num_at_once())

    async def score_answers(
        self, served: ServedPrompt, inputs: Sequence[str], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """log P(answer | prompt, text), natural logarithm. Args: answers: ids of the one answer to each input."""
        texts = await self._encode(served, inputs, max(map(len, answers)))
        plans = (self._engine.plan_scoring([answer]) for answer in answers)
        scores = (self._score_after(served, text, plan) for text, plan in zip(texts, plans, strict=True))
        return [score for [score] in await all_of(scores, at_once=self._num_at_once())]

    async def _score_after(self, served: ServedPrompt, text: Sequence[int], plan: ScoringPlan) -> list[float]:
        request = self._request(served, text)
        return (await self._engine.score(request, plan, deadline_s=self._call.left_s)).log_likelihoods

    async def _generate_after(self, served: ServedPrompt, text: Sequence[int]) -> str:
        request = replace(self._request(served, text), params=served.params)
        deltas = self._engine.generate(request, deadline_s=self._call.left_s)
        async with aclosing(deltas):
            written = "".join([delta.text async for delta in deltas])
        return written.strip()

    def _request(self, served: ServedPrompt, text: Sequence[int]) -> EngineRequest:
        return EngineRequest(token_ids=text, prompt=served.prompt, cache_salt=self._call.cache_salt, flow=self._flow)

    async def _encode(
        self, served: ServedPrompt, inputs: Sequence[str], num_answer_tokens: int
    ) -> list[tuple[int, ...]]:
        """Texts as they continue the prompt; those that are too long lose their end, as in tuning."""
        room = served.input_room(self._engine.max_positions, num_answer_tokens)
        rows = await asyncio.to_thread(served.encode, self._backbone, inputs, room)
        return [row.text_ids for row in rows]

    def _num_at_once(self, num_sequences: int = 1) -> int:
        """Texts that the engine gets at a time, if each takes `num_sequences` sequences."""
        return max(1, min(self._engine.num_at_once(num_sequences), MAX_SEQUENCES_AT_ONCE // num_sequences))
