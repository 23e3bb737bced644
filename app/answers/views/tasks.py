"""What the registry holds, as `/v1/tasks` and `softswap tasks --json` show it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from app.answers.views.reply import Reply
from app.registry.aliases import AliasTarget, Gate
from app.registry.evaluations import RecordedEvaluation
from app.registry.version import TaskSummary, Version


class VersionObject(Reply):
    """One immutable publication of a task prompt."""

    id: str = Field(description="The pinned name, such as `sentiment@3`.")
    object: Literal["task.version"] = "task.version"
    task: str
    number: int
    digest: str = Field(description="sha256 over kind, backbone and values.")
    kind: Literal["embeddings", "kv", "text"]
    num_virtual_tokens: int
    backbone_fingerprint: str = Field(description="The only backbone that can serve it.")
    template: str | None
    labels: list[str]
    label_temperature: float | None = Field(
        description="What the labels' log-likelihoods are divided by; null leaves their probabilities as they are."
    )
    sampling: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    provenance: dict[str, JsonValue]
    description: str
    created_at: int = Field(description="Seconds since 1970.")


class RecordedEvaluationObject(Reply):
    """Figures of a version that were kept with it."""

    data_sha256: str = Field(description="Of the examples.")
    data_name: str
    metrics: dict[str, float]
    created_at: int = Field(description="Seconds since 1970.")


class GateObject(Reply):
    """What keeps an alias from moving to a version that scores lower than the one it means."""

    data_sha256: str = Field(description="Of its examples, which the task keeps.")
    metric: str
    tolerance: float


class TaskObject(Reply):
    """A task and what its names mean now."""

    id: str
    object: Literal["task"] = "task"
    live: VersionObject | None = Field(description="What the bare name means; null if no alias says it.")
    num_versions: int
    aliases: dict[str, int | dict[str, float]] = Field(
        description="Each alias's version number, or two numbers with the shares of requests they get."
    )
    gates: dict[str, GateObject] = Field(description="Of those aliases that have one.")


def task_object(summary: TaskSummary) -> TaskObject:
    return TaskObject(
        id=summary.task,
        live=None if summary.live is None else version_object(summary.live),
        num_versions=summary.num_versions,
        aliases={alias: target_object(target) for alias, target in summary.aliases.items()},
        gates={alias: gate_object(gate) for alias, gate in summary.gates.items()},
    )


def gate_object(gate: Gate) -> GateObject:
    return GateObject(**GateObject.fields_of(gate))


def recorded_object(evaluation: RecordedEvaluation) -> RecordedEvaluationObject:
    return RecordedEvaluationObject(**RecordedEvaluationObject.fields_of(evaluation))


def target_object(target: AliasTarget) -> int | dict[str, float]:
    return {str(number): weight for number, weight in target.items()} if isinstance(target, dict) else target


def version_object(version: Version) -> VersionObject:
    converted = {
        "kind": version.kind.value,
        "template": None if version.template is None else version.template.text,
        "labels": list(version.labels),
        "sampling": {name: _jsonable(value) for name, value in version.sampling.items()},
        "metrics": dict(version.metrics),
        "provenance": dict(version.provenance),
    }
    return VersionObject(**VersionObject.fields_of(version) | converted)


def _jsonable(value: Any) -> Any:
    """Sampling defaults are typed as SamplingParams: tuples, and numbers as keys."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
