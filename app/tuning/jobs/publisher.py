"""Publisher: makes versions of what a job has found. Doing it again after a crash finds what was published before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from app.errors import NotFound
from app.tuning.jobs.job import Job

if TYPE_CHECKING:
    from app.registry.evaluations import RecordedEvaluation
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt
    from app.tuning.plan import TuningPlan
    from app.tuning.result import TuneResult


@dataclass(frozen=True)
class Candidate:
    """The best state of a run so far, of which a checkpoint can be made. Attributes: step: updates done by then."""

    prompt: TaskPrompt
    step: int
    metric: str
    value: float


class Publisher:
    """Publishes for one job. Its versions say in their provenance which job and step they are of."""

    def __init__(self, registry: Registry, job: Job, plan: TuningPlan) -> None:
        self._registry = registry
        self._job = job
        self._plan = plan

    def publish_checkpoint(self, candidate: Candidate) -> Version:
        """A version that no alias means."""
        mark = {"job": self._job.id, "checkpoint_step": candidate.step}
        version = self._find(mark)
        if version is not None:
            return version
        fields = self._fields(
            metrics={f"validation_{candidate.metric}": candidate.value},
            tuning=asdict(self._plan.config),
            provenance={"method": "prompt_tuning", **mark},
        )
        return self._registry.publish(self._job.spec.task, candidate.prompt, alias=None, **fields)

    def fields(self, result: TuneResult) -> dict[str, Any]:
        """Of `Registry.publish`, for the result."""
        provenance = {**result.provenance, **self._mark(result)}
        return self._fields(
            metrics=result.metrics,
            label_temperature=result.validation.label_temperature,
            tuning=provenance.pop("config"),
            provenance=provenance,
        )

    def publish_result(self, result: TuneResult, evaluations: Sequence[RecordedEvaluation] = ()) -> Version:
        """The version that the job was for; the alias it asked for means it when this returns.

        Args: evaluations: what the alias's gate asks for.

        Raises GateFailed: the alias stays; nothing was published.
        """
        alias = self._job.spec.alias
        version = self._find(self._mark(result))
        if version is None:
            fields = self.fields(result)
            return self._registry.publish(
                self._job.spec.task, result.prompt, alias=alias, evaluations=evaluations, **fields
            )
        if alias is not None:
            self._registry.set_alias(version.task, alias, version.number)
        return version

    def publish_aside(self, result: TuneResult) -> Version:
        """The same version, without any alias."""
        return self._find(self._mark(result)) or self._registry.publish(
            self._job.spec.task, result.prompt, alias=None, **self.fields(result)
        )

    def _mark(self, result: TuneResult) -> dict[str, Any]:
        return {"job": self._job.id, "result_step": result.best_step}

    def _find(self, mark: Mapping[str, Any]) -> Version | None:
        """What an earlier run of this job published before it could write that down."""
        try:
            versions = self._registry.versions(self._job.spec.task)
        except NotFound:
            return None
        return next((version for version in versions if mark.items() <= version.provenance.items()), None)

    def _fields(
        self,
        *,
        metrics: Mapping[str, float],
        tuning: Mapping[str, Any],
        provenance: dict[str, Any],
        label_temperature: float | None = None,
    ) -> dict[str, Any]:
        labels = self._plan.labels
        provenance.pop("data_hash", None)
        return {
            "template": self._plan.template,
            "labels": labels,
            "label_temperature": label_temperature,
            "sampling": {} if labels else {"temperature": 0.0, "max_tokens": self._plan.config.max_target_tokens},
            "metrics": metrics,
            "data_sha256": self._plan.data_hash,
            "tuning": tuning,
            "provenance": provenance,
            "description": self._job.spec.description,
        }
