"""Evaluation through the running engine: of a version, or of an ensemble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from app.answers.ensembles import Combine, Ensemble, choose_combine, choose_text, combine_chances
from app.answers.generating.labels import LabelChances
from app.answers.measuring.engine_model import EngineModel
from app.answers.targets import Target
from app.errors import InvalidInput
from app.http.protection.auth import cache_salt
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation, Measurement, require_measurable
from app.measure.served_prompt import ServedPrompt

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.http.tasks.evaluation_schema import ExampleItem, ExampleSource

MAX_EXAMPLES: Final = 5000


def engine_model(services: Services, flow: str) -> EngineModel:
    return EngineModel(
        services.engine,
        services.backbone,
        flow=flow,
        cache_salt=cache_salt.get(),
    )


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
        record: whether the figures are to be kept afterwards (`record_evaluation`).

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
    """Args: deadline_s: seconds from now for the whole of it. Raises what Measurement and EngineModel raise."""
    services.check_accepting()
    asked = Measurement(ServedPrompt.of(target.prompt, target), examples)
    return await engine_model(services, target.flow).evaluate(asked, deadline_s)


async def evaluate_ensemble(
    services: Services, ensemble: Ensemble, examples: Sequence[Example], combine: Combine, deadline_s: float
) -> Evaluation:
    """Versions that answer together, each measured once. Raises what `evaluate_target` raises."""
    services.check_accepting()
    require_measurable(examples, ensemble.labels)
    inputs, targets = [example.input for example in examples], [example.target for example in examples]
    members = [
        (engine_model(services, member.flow), ServedPrompt.of(member.prompt, member)) for member in ensemble.members
    ]
    ends_at = time.monotonic() + deadline_s
    if not ensemble.labels:
        texts = [await model.generate(served, inputs, ends_at - time.monotonic()) for model, served in members]
        answers = [said[choose_text(said)] for said in zip(*texts, strict=True)]
        return await asyncio.to_thread(Evaluation.of_texts, answers, targets)
    scores = [await model.score(served, inputs, ends_at - time.monotonic()) for model, served in members]
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
