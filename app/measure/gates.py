"""Gates, seen from those who measure: the registry compares scores, and here they are found on the plain path.

The server finds them through its engine (`app.answers.measuring.promote`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.errors import InvalidInput, NotFound
from app.measure import metrics
from app.measure.dataset import Example, hash_examples, unpack_examples
from app.measure.plain_model import Evaluation, evaluate, evaluate_version, longest_answer, stop_strings
from app.model.backbone import Backbone
from app.model.layout import BARE
from app.registry.aliases import AliasTarget, compare_targets, main_number
from app.registry.evaluations.gate import Gate
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.version import Version


def make_gate(
    examples: Sequence[Example], labels: Sequence[str], *, metric: str | None = None, tolerance: float = 0.0
) -> Gate:
    """Args: metric: None takes the task's main one. Raises InvalidInput: such a task has no such metric."""
    possible = metrics.names_of(labels, [example.target for example in examples])
    chosen = metric or possible[0]
    if chosen not in possible:
        raise InvalidInput(f"the metric must be one of {', '.join(possible)} on these examples", param="metric")
    return Gate(hash_examples(examples), chosen, tolerance)


def unscored(registry: Registry, task: str, gate: Gate, numbers: Collection[int]) -> list[Version]:
    """Those of the versions that have no score on the gate's examples yet."""
    asked = [version for version in registry.versions(task) if version.number in numbers]
    return [version for version in asked if registry.evaluations.find(version, gate.data_sha256) is None]


def numbers_to_score(registry: Registry, task: str, alias: str, target: AliasTarget) -> tuple[int, ...]:
    """The versions whose scores decide whether the alias may move."""
    comparison = compare_targets(registry.aliases(task).get(alias), target)
    return () if comparison is None else comparison.numbers


def score_versions(
    backbone: Backbone, registry: Registry, task: str, gate: Gate, numbers: Collection[int], examples: Sequence[Example]
) -> None:
    """Measure and record what is missing. Args: examples: the gate's."""
    for version in unscored(registry, task, gate, numbers):
        prompt = registry.prompt(version)
        measured = evaluate_version(backbone, version, prompt, examples)
        registry.evaluations.record(version, measured.record(version.digest, gate.data_sha256))


def publish_measured(
    backbone: Backbone,
    registry: Registry,
    task: str,
    publication: Publication,
    *,
    alias: str | None,
    force: bool = False,
) -> Version:
    """`Registry.publish`, with the scores that the alias's gate asks for.

    Raises: as that does; GateFailed leaves everything as it was.
    """
    evaluations = []
    gate = find_gate(registry, task, alias)
    if gate is not None and alias is not None and not force:
        examples = unpack_examples(registry.gates.examples(task, gate))
        present = registry.aliases(task).get(alias)
        if present is not None:
            score_versions(backbone, registry, task, gate, [main_number(present)], examples)
        measured = _measure(backbone, publication, examples)
        evaluations = [measured.record(publication.prompt.digest, gate.data_sha256)]
    return registry.publish(task, publication, alias=alias, force=force, evaluations=evaluations)


def find_gate(registry: Registry, task: str, alias: str | None) -> Gate | None:
    """Of an alias that shall move; None too for a task that is still to come."""
    if alias is None:
        return None
    try:
        return registry.gates.find(task, alias)
    except NotFound:
        return None


def _measure(backbone: Backbone, publication: Publication, examples: Sequence[Example]) -> Evaluation:
    """Of a prompt that is no version yet, as the version would be served."""
    return evaluate(
        backbone,
        publication.prompt,
        publication.template or BARE,
        publication.labels,
        examples,
        label_temperature=publication.label_temperature or 1.0,
        stop=stop_strings(publication.sampling),
        max_new_tokens=longest_answer(publication.sampling),
    )
