"""TokenReporter: what is known of a version's virtual tokens and what they do, as the running engine measures it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from pydantic import Field

from app.answers.call import Call
from app.answers.measuring.evaluation import EngineModel, Evaluator
from app.answers.targets import Target, TaskFinder
from app.answers.views import Reply
from app.errors import InvalidInput
from app.insight.keys_values import LayerNorms
from app.insight.report import (
    CachedToken,
    Effect,
    EmbeddedToken,
    MadeOfTokens,
    PromptReport,
    PromptView,
    TokenEffects,
    made_of_tokens,
    view_prompt,
    without_token,
)
from app.insight.similarity import NearToken, PromptDifference, compare_prompts
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Measurement
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import TaskPrompt

MAX_ABLATIONS: Final = 20_000


class PromptTokensObject(Reply):
    """What can be seen of a prompt's rows; `note` says what it can and cannot tell."""

    object: Literal["task.tokens"] = "task.tokens"
    model: str
    kind: Literal["embeddings", "kv"]
    note: str
    virtual_tokens: tuple[EmbeddedToken, ...] | tuple[CachedToken, ...] = Field(
        description="The rows in order. `drift` is the distance from the initial value, null if that is not known; "
        "`norm_percentile` the share of the vocabulary's embeddings that are shorter, 0 to 100; `key_norm` and "
        "`value_norm` the mean length over the layers, where 1 is the median of a real text's in that layer."
    )
    clusters: list[list[int]] = Field(description="Virtual tokens every two of which have a cosine of at least 0.5.")
    near_duplicates: list[list[int]] = Field(description="Of at least 0.95: one of each group would probably do.")
    vocabulary_norms: dict[int, float] | None = Field(
        None, description="Of embeddings: percentile to L2 norm of the vocabulary's."
    )
    layers: tuple[LayerNorms, ...] | None = Field(
        None, description="Of keys and values: their lengths by percentile, a real text's and the prompt's."
    )
    difference: PromptDifference | None = Field(
        None,
        description="What changed from another version, `model`. `is_same` says whether both hold the same values; a "
        "row's `distance` and `cosine` are null if the other version has no such row, and `nearest` is its row at the "
        "smallest angle.",
    )
    effects: TokenEffects | None = Field(
        None,
        description="`loss` is the mean negative log-probability of the target: among the labels, or per token of a "
        "text. `without` has for each virtual token the change when it is left out; a loss above 0 in a change says "
        "that the answers are worse.",
    )


def tokens_object(report: PromptReport) -> PromptTokensObject:
    """Dump it without the fields that are not set."""
    groups = {"clusters": report.view.clusters, "near_duplicates": report.view.near_duplicates}
    shown = PromptTokensObject.given_in(report.view) | PromptTokensObject.given_in(report)
    return PromptTokensObject(**shown | groups)


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
        num_nearest: int | None = None,
        compare: str | None = None,
        *,
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


class EffectMeter:
    """Answers the same examples with one prompt after another."""

    def __init__(
        self, model: EngineModel, backbone: Backbone, served: ServedPrompt, examples: Sequence[Example]
    ) -> None:
        self._model = model
        self._backbone = backbone
        self._asked = Measurement(served, examples)

    async def measure(self, prompt: TaskPrompt | None) -> Effect:
        """Loss and accuracy with this prompt."""
        asked = replace(self._asked, served=replace(self._asked.served, prompt=prompt))
        if asked.served.labels:
            metrics = (await self._model.evaluate(asked)).metrics
            return Effect(metrics["nll"], metrics["accuracy"])
        return Effect(await self._loss_of_targets(asked), None)

    async def _loss_of_targets(self, asked: Measurement) -> float:
        """Mean over the examples of the target's mean negative log-probability per token, end of sequence included."""
        tokenizer, template = self._backbone.tokenizer, asked.served.template
        eos_ids = self._backbone.taught_eos_ids
        answers = [(*template.encode_target(tokenizer, target), *eos_ids) for target in asked.targets]
        scores = await self._model.score_answers(asked.served, asked.inputs, answers)
        return -sum(score / len(answer) for score, answer in zip(scores, answers, strict=True)) / len(answers)

    async def change(self, prompt: TaskPrompt | None, present: Effect) -> Effect:
        """Against `present`."""
        found = await self.measure(prompt)
        accuracy = None if found.accuracy is None else found.accuracy - (present.accuracy or 0.0)
        return Effect(found.loss - present.loss, accuracy)


async def measure_effects(
    evaluator: Evaluator, backbone: Backbone, target: Target, view: PromptView, examples: Sequence[Example], call: Call
) -> TokenEffects:
    """Leave out each virtual token, and put the nearest tokens in the place of all.

    One variant after another: each has its prefix computed once, and only one of them takes room in the cache.

    Raises InvalidInput: more answers than a request may ask for; and what Measurement and EngineModel raise.
    """
    prompt = target.prompt
    assert prompt is not None
    _require_few(prompt.num_virtual_tokens, len(examples))
    model = evaluator.model(target.flow, call)
    meter = EffectMeter(model, backbone, ServedPrompt.of(prompt, target), examples)
    present = await meter.measure(prompt)
    without = [await meter.change(without_token(prompt, index), present) for index in range(prompt.num_virtual_tokens)]
    return TokenEffects(
        num_examples=len(examples),
        data_sha256=hash_examples(examples),
        present=present,
        without=tuple(without),
        made_of_tokens=tuple(await _replace_all(backbone, meter, view, present)),
    )


async def _replace_all(backbone: Backbone, meter: EffectMeter, view: PromptView, present: Effect) -> list[MadeOfTokens]:
    embedded = [token for token in view.virtual_tokens if isinstance(token, EmbeddedToken)]
    if not embedded:
        return []
    measure_to_nearest: dict[Literal["cosine", "distance"], list[NearToken]] = {
        "cosine": [token.by_cosine[0] for token in embedded],
        "distance": [token.by_distance[0] for token in embedded],
    }
    found = []
    for nearest_by, nearest in measure_to_nearest.items():
        variant = await asyncio.to_thread(made_of_tokens, backbone, [near.token_id for near in nearest])
        effect = await meter.change(variant, present)
        found.append(MadeOfTokens(nearest_by, tuple(near.token for near in nearest), effect))
    return found


def _require_few(num_virtual_tokens: int, num_examples: int) -> None:
    num_variants = num_virtual_tokens + 3
    if num_variants * num_examples > MAX_ABLATIONS:
        raise InvalidInput(
            f"{num_virtual_tokens} virtual tokens can be measured on at most {MAX_ABLATIONS // num_variants} examples",
            param="examples",
        )
