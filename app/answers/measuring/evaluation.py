"""Evaluation through the running engine: the figures of `app.measure.plain_model`, next to the requests it serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from app.answers.batch import ask_each, max_at_once
from app.answers.ensembles import Combine, Ensemble, choose_combine, choose_text, combine_chances
from app.answers.generating.generation import Ask, collect
from app.answers.generating.labels import LabelChances
from app.answers.targets import Target
from app.errors import InvalidInput
from app.http.protection.auth import cache_salt
from app.measure.dataset import Example, hash_examples
from app.measure.plain_model import (
    Evaluation,
    cut_at,
    encode_inputs,
    input_room,
    longest_answer,
    stop_strings,
)
from app.sampling import SamplingParams

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.engine.async_engine import AsyncEngine
    from app.http.tasks.evaluation_schema import ExampleItem, ExampleSource

MAX_EXAMPLES: Final = 5000
MAX_SEQUENCES_AT_ONCE = 32
"""Of one evaluation: enough to fill batches, too few to keep other requests of the task waiting for long."""


async def evaluate_answerer(
    services: Services,
    answerer: Target | Ensemble,
    examples: Sequence[Example],
    combine: Combine | None,
    deadline_s: float,
    *,
    record: bool = False,
) -> Evaluation:
    """Of a version or of an ensemble.

    Args:
        combine: as the request has it.
        record: whether the figures shall be kept afterwards (`record_evaluation`).

    Raises InvalidInput: `combine` or `record` is not for this; and what `evaluate_target` raises.
    """
    how = choose_combine(answerer, combine)
    if isinstance(answerer, Target):
        if record and answerer.prompt is None:
            raise InvalidInput("the backbone is no version, which figures could be kept with", param="record")
        return await evaluate_target(services, answerer, examples, deadline_s)
    if record:
        raise InvalidInput("figures are kept with one version, and an ensemble is several", param="record")
    return await evaluate_ensemble(services, answerer, examples, how, deadline_s)


def record_evaluation(
    services: Services, answerer: Target | Ensemble, examples: Sequence[Example], measured: Evaluation, name: str
) -> None:
    """Keep the figures, as `evaluate_answerer` was asked to. Raises what `Evaluations.record` raises."""
    assert isinstance(answerer, Target)
    assert answerer.prompt is not None
    version = services.registry.resolve(answerer.model_id)
    services.registry.evaluations.record(
        version, measured.record(answerer.prompt.digest, hash_examples(examples), name)
    )


async def evaluate_target(
    services: Services, target: Target, examples: Sequence[Example], deadline_s: float
) -> Evaluation:
    """What `tuning.evaluation.evaluate_version` says, found by the engine.

    Args:
        deadline_s: seconds from now for the whole of it.

    Raises:
        InvalidInput: no examples, a target that is no label, or a prompt that leaves no room.
        Overloaded, Draining, DeadlineExceeded, ...: as `AsyncEngine.score` and `generate`.
    """
    services.check_accepting()
    targets = [example.target for example in examples]
    if target.labels:
        _require_labels(examples, target)
        scores = await _score(services, target, examples, deadline_s)
        return await asyncio.to_thread(
            Evaluation.of_scores, scores, target.labels, targets, temperature=target.label_temperature
        )
    answers = await _generate(services, target, examples, deadline_s)
    return await asyncio.to_thread(Evaluation.of_texts, answers, targets)


async def evaluate_ensemble(
    services: Services, ensemble: Ensemble, examples: Sequence[Example], combine: Combine, deadline_s: float
) -> Evaluation:
    """The same of several versions that answer together, each measured once. Raises what `evaluate_target` raises."""
    services.check_accepting()
    targets = [example.target for example in examples]
    ends_at = time.monotonic() + deadline_s
    if not ensemble.labels:
        texts = [await _generate(services, each, examples, ends_at - time.monotonic()) for each in ensemble.members]
        answers = [said[choose_text(said)] for said in zip(*texts, strict=True)]
        return await asyncio.to_thread(Evaluation.of_texts, answers, targets)
    _require_labels(examples, ensemble)
    scores = [await _score(services, each, examples, ends_at - time.monotonic()) for each in ensemble.members]
    temperatures = [member.label_temperature for member in ensemble.members]
    together = [
        combine_chances(list(map(LabelChances.from_log_likelihoods, found, temperatures)), combine)
        for found in zip(*scores, strict=True)
    ]
    if combine is Combine.VOTE:
        answers = [ensemble.labels[best] for best, _ in together]
        return await asyncio.to_thread(Evaluation.of_labels, answers, ensemble.labels, targets)
    values = [chances.to_log_likelihoods() for _, chances in together]
    return await asyncio.to_thread(Evaluation.of_scores, values, ensemble.labels, targets)


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


def _require_labels(examples: Sequence[Example], target: Target | Ensemble) -> None:
    for index, example in enumerate(examples):
        if example.target not in target.labels:
            raise InvalidInput(f"the target is none of {target.flow}'s labels", param=f"examples.{index}.target")


def examples_at_once(engine: AsyncEngine, num_sequences: int = 1) -> int:
    """How many are with the engine at a time, each of so many sequences: fewer than of a call that somebody awaits."""
    return max(1, min(max_at_once(engine, num_sequences), MAX_SEQUENCES_AT_ONCE // num_sequences))


async def _score(
    services: Services, target: Target, examples: Sequence[Example], deadline_s: float
) -> list[list[float]]:
    """log P(label | prompt, text) of every label for every example."""
    plan = services.labels.plan(target.input_template, target.labels)
    texts = await encode_texts(services, target, examples, max(map(len, plan.continuations)))

    async def score(token_ids: Sequence[int], left_s: float) -> list[float]:
        scoring = await services.engine.score(
            token_ids, plan, prompt=target.prompt, cache_salt=cache_salt.get(), flow=target.flow, deadline_s=left_s
        )
        return scoring.log_likelihoods

    num_sequences = services.engine.num_scored_at_once(plan.num_sequences)
    return await ask_each(texts, score, deadline_s, at_once=examples_at_once(services.engine, num_sequences))


async def _generate(services: Services, target: Target, examples: Sequence[Example], deadline_s: float) -> list[str]:
    """The likeliest answers, blanks trimmed."""
    params = SamplingParams(
        temperature=0.0, max_tokens=longest_answer(target.sampling), stop=stop_strings(target.sampling)
    )
    texts = await encode_texts(services, target, examples, params.max_tokens)

    async def generate(token_ids: Sequence[int], left_s: float) -> str:
        [choice] = await collect(services, target, [Ask(tuple(token_ids), params)], left_s)
        return cut_at(choice.text.strip(), params.stop)

    return await ask_each(texts, generate, deadline_s, at_once=examples_at_once(services.engine))


async def encode_texts(
    services: Services, target: Target, examples: Sequence[Example], num_after: int
) -> list[tuple[int, ...]]:
    """Texts as they stand behind the prompt; those too long lose their end, as in tuning."""
    if not examples:
        raise InvalidInput("there are no examples to evaluate on", param="examples")
    room = input_room(services.engine.max_positions, target.num_virtual_tokens, num_after)
    inputs = [example.input for example in examples]
    encoded = await asyncio.to_thread(
        encode_inputs, services.backbone, target.prompt, target.input_template, inputs, room
    )
    return [row.text_ids for row in encoded]
