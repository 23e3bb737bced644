"""Gates on the server: the scores a move asks for are found by the running engine, and kept by the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from app.answers.measuring.evaluation import evaluate_target, find_examples
from app.answers.targets import Target, version_target
from app.measure.dataset import Example, pack_examples, unpack_examples
from app.measure.gates import find_gate, make_gate, numbers_to_score, unscored
from app.registry.aliases import AliasTarget, main_number, numbers_of
from app.registry.evaluations.evaluation_folder import RecordedEvaluation
from app.registry.evaluations.gate import Gate
from app.registry.formats.manifest import read_sampling

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.http.tasks.tasks_schema import GateRequest
    from app.registry.publication import Publication
    from app.registry.version import Version


async def move_alias(
    services: Services,
    task: str,
    alias: str,
    target: AliasTarget,
    *,
    asked: GateRequest | None,
    force: bool,
    if_match: str | None,
    deadline_s: float,
) -> None:
    """`Registry.set_alias`, after the scores its gate asks for were found.

    Args: asked: the gate the alias shall have from now on.

    Raises GateFailed, and what `set_alias` and `evaluate_target` raise.
    """
    gate, examples = await _attach(services, task, target, asked, deadline_s) if asked else (None, [])
    standing = gate or await asyncio.to_thread(find_gate, services.registry, task, alias)
    if standing is not None and not force:
        numbers = await asyncio.to_thread(numbers_to_score, services.registry, task, alias, target)
        await _score_versions(services, task, standing, numbers, deadline_s, examples=examples)
    await asyncio.to_thread(
        services.registry.set_alias,
        task,
        alias,
        target,
        gate=gate,
        gate_examples=pack_examples(examples),
        force=force,
        if_match=if_match,
    )


async def publish_measured(
    services: Services,
    task: str,
    publication: Publication,
    *,
    alias: str | None,
    force: bool,
    if_match: str | None,
    deadline_s: float,
) -> Version:
    """`Registry.publish`, with the scores that the alias's gate asks for. Raises GateFailed, and what that raises."""
    evaluations: list[RecordedEvaluation] = []
    gate = await asyncio.to_thread(find_gate, services.registry, task, alias)
    if gate is not None and not force:
        examples = unpack_examples(await asyncio.to_thread(services.registry.gates.examples, task, gate))
        present = services.registry.aliases(task).get(alias or "")
        if present is not None:
            await _score_versions(services, task, gate, [main_number(present)], deadline_s, examples=examples)
        measured = await evaluate_target(services, _candidate(task, publication), examples, deadline_s)
        evaluations = [measured.record(publication.prompt.digest, gate.data_sha256)]
    return await asyncio.to_thread(
        services.registry.publish,
        task,
        publication,
        alias=alias,
        force=force,
        evaluations=evaluations,
        if_match=if_match,
    )


async def _attach(
    services: Services, task: str, target: AliasTarget, asked: GateRequest, deadline_s: float
) -> tuple[Gate, Sequence[Example]]:
    """The gate, and its examples, which every version the alias shall mean must be able to answer."""
    examples = await find_examples(services, asked)
    version = await asyncio.to_thread(services.registry.resolve, f"{task}@{main_number(target)}")
    gate = make_gate(examples, version.labels, metric=asked.metric, tolerance=asked.tolerance or 0.0)
    await _score_versions(services, task, gate, numbers_of(target), deadline_s, examples=examples)
    return gate, examples


async def _score_versions(
    services: Services,
    task: str,
    gate: Gate,
    numbers: Collection[int],
    deadline_s: float,
    *,
    examples: Sequence[Example] = (),
) -> None:
    """Measure and record what is missing. Args: examples: the gate's, where they are at hand."""
    registry = services.registry
    for version in await asyncio.to_thread(unscored, registry, task, gate, numbers):
        examples = examples or unpack_examples(await asyncio.to_thread(registry.gates.examples, task, gate))
        prompt = await asyncio.to_thread(registry.prompt, version)
        measured = await evaluate_target(services, version_target(version, prompt), examples, deadline_s)
        await asyncio.to_thread(registry.evaluations.record, version, measured.record(version.digest, gate.data_sha256))


def _candidate(task: str, publication: Publication) -> Target:
    """A prompt that is no version yet, as the version would be served."""
    return Target(
        model_id=task,
        flow=task,
        prompt=publication.prompt,
        template=publication.template,
        labels=tuple(publication.labels),
        sampling=read_sampling(publication.sampling),
        label_temperature=publication.label_temperature or 1.0,
    )
