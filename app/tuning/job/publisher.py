"""Publisher: makes versions of what a job has found. Doing it again after a crash finds what was published before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from app.engine.threads.slices import Lease, take_turns
from app.errors import NotFound
from app.jobs.job import Job
from app.measure.plain_model import PlainModel
from app.measure.promote import run_with, score_move
from app.registry.publication import Publication

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt
    from app.tuning.distillation.distillation_run import DistillationRun
    from app.tuning.result import TuneResult
    from app.tuning.run.run import TuningRun


@dataclass(frozen=True)
class Candidate:
    """The best state of a run so far, of which a checkpoint can be made. Attributes: step: updates done by then."""

    prompt: TaskPrompt
    step: int
    metric: str
    value: float


class Publisher:
    """Publishes for one job. Its versions say in their provenance which job and step they are of."""

    def __init__(self, backbone: Backbone, registry: Registry, job: Job, run: TuningRun | DistillationRun) -> None:
        self._backbone = backbone
        self._registry = registry
        self._job = job
        self._run = run

    def publish_checkpoint(self, candidate: Candidate) -> Version:
        """A version that no alias means."""
        mark = {"job": self._job.id, "checkpoint_step": candidate.step}
        return self._find(mark) or self._publish(self._describe(candidate), mark)

    def publish_result(self, result: TuneResult) -> Version:
        """The version that the job was for, or another of its ensemble. No alias means it yet."""
        mark = {"job": self._job.id, "result_step": result.best_step, "result_member": result.member}
        return self._find(mark) or self._publish(result.publication(self._job.spec.description), mark)

    def find_scores(self, version: Version, lease: Lease, num_rows_at_once: int) -> None:
        """Measure, turn by turn, what the gate of the job's alias will ask of the version, if it has one.

        Raises what `lease` raises; what was measured by then is kept.
        """
        if self._job.spec.alias is not None:
            model = PlainModel(self._backbone, num_rows_at_once)
            scoring = score_move(self._registry, version.task, self._job.spec.alias, version.number)
            run_with(lambda asked: take_turns(lease, model.evaluate(asked)), scoring)

    def move_alias(self, version: Version) -> None:
        """Let the job's alias mean the version. Raises GateFailed: it scores lower than what the alias means now."""
        if self._job.spec.alias is not None:
            self._registry.set_alias(version.task, self._job.spec.alias, version.number)

    def _find(self, mark: Mapping[str, Any]) -> Version | None:
        """What an earlier run of this job published before it could write that down."""
        try:
            versions = self._registry.versions(self._job.spec.task)
        except NotFound:
            return None
        return next((version for version in versions if mark.items() <= version.provenance.items()), None)

    def _publish(self, publication: Publication, mark: Mapping[str, Any]) -> Version:
        marked = replace(publication, provenance={**publication.provenance, **mark})
        return self._registry.publish(self._job.spec.task, marked, alias=None)

    def _describe(self, candidate: Candidate) -> Publication:
        plan = self._run.plan
        return Publication(
            candidate.prompt,
            template=plan.template,
            labels=plan.labels,
            sampling={} if plan.labels else {"temperature": 0.0, "max_tokens": plan.config.max_target_tokens},
            metrics={f"validation_{candidate.metric}": candidate.value},
            data_sha256=plan.data_hash,
            tuning=asdict(plan.config),
            provenance={"method": self._job.spec.provenance_method},
            description=self._job.spec.description,
        )
