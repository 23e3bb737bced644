"""Gates, seen from those who measure: the registry compares scores, and here they are found on the plain path.

The server finds them through its engine (`app.api.gates`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from app.errors import InvalidInput, NotFound
from app.model.backbone import Backbone
from app.model.layout import BARE
from app.registry.aliases import AliasTarget, compare_targets, main_number
from app.registry.evaluations import RecordedEvaluation
from app.registry.gate import Gate
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import TaskPrompt
from app.tuning import metrics
from app.tuning.dataset import Example, hash_examples, unpack_examples
from app.tuning.evaluation import (
    Evaluation,
    evaluate_in_slices,
    evaluate_version_in_slices,
    longest_answer,
    stop_strings,
)
from app.tuning.slices import Slices, run_to_end


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
    return [version for version in asked if registry.find_evaluation(version, gate.data_sha256) is None]


def numbers_to_score(registry: Registry, task: str, alias: str, target: AliasTarget) -> tuple[int, ...]:
    """The versions whose scores decide whether the alias may move."""
    comparison = compare_targets(registry.aliases(task).get(alias), target)
    return () if comparison is None else comparison.numbers


def score_versions(
    backbone: Backbone, registry: Registry, task: str, gate: Gate, numbers: Collection[int], examples: Sequence[Example]
) -> None:
    """Measure and record what is missing. Args: examples: the gate's."""
    run_to_end(score_versions_in_slices(backbone, registry, task, gate, numbers, examples))


def score_versions_in_slices(
    backbone: Backbone, registry: Registry, task: str, gate: Gate, numbers: Collection[int], examples: Sequence[Example]
) -> Slices[None]:
    """`score_versions`, one forward at a time."""
    for version in unscored(registry, task, gate, numbers):
        prompt = registry.prompt(version)
        measured = yield from evaluate_version_in_slices(backbone, version, prompt, examples)
        registry.record(version, measured.record(version.digest, gate.data_sha256))


def publish_measured(
    backbone: Backbone,
    registry: Registry,
    task: str,
    prompt: TaskPrompt,
    *,
    alias: str | None,
    force: bool = False,
    **fields: Any,
) -> Version:
    """`Registry.publish`, with the scores that the alias's gate asks for.

    Args: fields: of `Registry.publish`.

    Raises: as that does; GateFailed leaves everything as it was.
    """
    evaluations = [] if force else run_to_end(measure_in_slices(backbone, registry, task, prompt, alias, fields))
    return registry.publish(task, prompt, alias=alias, force=force, evaluations=evaluations, **fields)


def measure_in_slices(
    backbone: Backbone, registry: Registry, task: str, prompt: TaskPrompt, alias: str | None, fields: Mapping[str, Any]
) -> Slices[list[RecordedEvaluation]]:
    """What `Registry.publish` wants to know of a prompt that an alias with a gate shall mean; empty without a gate.

    What the alias means now is measured too and recorded, where it has no score yet.
    """
    gate = find_gate(registry, task, alias)
    if gate is None or alias is None:
        return []
    examples = unpack_examples(registry.gate_examples(task, gate))
    present = registry.aliases(task).get(alias)
    if present is not None:
        yield from score_versions_in_slices(backbone, registry, task, gate, [main_number(present)], examples)
    measured = yield from _measure(backbone, prompt, fields, examples)
    return [measured.record(prompt.digest, gate.data_sha256)]


def find_gate(registry: Registry, task: str, alias: str | None) -> Gate | None:
    """Of an alias that shall move; None too for a task that is still to come."""
    if alias is None:
        return None
    try:
        return registry.gate(task, alias)
    except NotFound:
        return None


def _measure(
    backbone: Backbone, prompt: TaskPrompt, fields: Mapping[str, Any], examples: Sequence[Example]
) -> Slices[Evaluation]:
    """Of a prompt that is no version yet, as the version would be served."""
    sampling = fields.get("sampling") or {}
    return evaluate_in_slices(
        backbone,
        prompt,
        fields.get("template") or BARE,
        fields.get("labels") or (),
        examples,
        label_temperature=fields.get("label_temperature") or 1.0,
        stop=stop_strings(sampling),
        max_new_tokens=longest_answer(sampling),
    )
