"""What the registry holds, as `/v1/tasks` and `softswap tasks --json` show it."""

from __future__ import annotations

from typing import Any

from app.http.tasks.tasks_schema import Gate, RecordedEvaluation, Task, Version
from app.registry.aliases import AliasTarget
from app.registry.evaluations.evaluations import RecordedEvaluation as RegistryEvaluation
from app.registry.evaluations.gate import Gate as RegistryGate
from app.registry.version import TaskSummary
from app.registry.version import Version as RegistryVersion


def task_object(summary: TaskSummary) -> Task:
    return Task(
        id=summary.task,
        live=None if summary.live is None else version_object(summary.live),
        num_versions=summary.num_versions,
        aliases={alias: target_object(target) for alias, target in summary.aliases.items()},
        gates={alias: gate_object(gate) for alias, gate in summary.gates.items()},
    )


def gate_object(gate: RegistryGate) -> Gate:
    return Gate(data_sha256=gate.data_sha256, metric=gate.metric, tolerance=gate.tolerance)


def recorded_object(evaluation: RegistryEvaluation) -> RecordedEvaluation:
    return RecordedEvaluation(**evaluation.model_dump(exclude={"schema_version", "digest"}))


def target_object(target: AliasTarget) -> int | dict[str, float]:
    return {str(number): weight for number, weight in target.items()} if isinstance(target, dict) else target


def version_object(version: RegistryVersion) -> Version:
    return Version(
        id=version.id,
        task=version.task,
        number=version.number,
        digest=version.digest,
        kind=version.kind.value,
        num_virtual_tokens=version.num_virtual_tokens,
        backbone_fingerprint=version.backbone_fingerprint,
        template=None if version.template is None else version.template.text,
        labels=list(version.labels),
        label_temperature=version.label_temperature,
        sampling={name: _jsonable(value) for name, value in version.sampling.items()},
        metrics=dict(version.metrics),
        provenance=dict(version.provenance),
        description=version.description,
        created_at=version.created_at,
    )


def _jsonable(value: Any) -> Any:
    """Sampling defaults are typed as SamplingParams: tuples, and numbers as keys."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
