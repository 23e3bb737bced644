"""Publisher: makes versions of what a job has found. After a crash it finds what was published before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from app.engine.threads.slices import Lease, take_turns
from app.errors import NotFound
from app.measure.plain_model import PlainModel
from app.measure.promote import run_with, score_move
from app.registry.publication import Publication

if TYPE_CHECKING:
    from app.jobs.work import Candidate
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.tuning.distillation.distillation_run import DistillationRun
    from app.tuning.job.spec import JobSpec
    from app.tuning.result import TuneResult
    from app.tuning.run.run import TuningRun


class Publisher:
    """Publishes for one job. The provenance of its versions says which job and step they are from."""

    def __init__(
        self, backbone: Backbone, registry: Registry, job_id: str, spec: JobSpec, run: TuningRun | DistillationRun
    ) -> None:
        self._backbone = backbone
        self._registry = registry
        self._job_id = job_id
        self._spec = spec
        self._run = run

    @property
    def alias(self) -> str | None:
        return self._spec.alias

    def publish_checkpoint(self, candidate: Candidate) -> Version:
        """A version without an alias."""
        origin = {"job": self._job_id, "checkpoint_step": candidate.step}
        return self._find(origin) or self._publish(self._describe(candidate), origin)

    def publish_result(self, result: TuneResult) -> Version:
        """The version that the job was for, or another of its ensemble, still without an alias."""
        origin = {"job": self._job_id, "result_step": result.best_step, "result_member": result.member}
        return self._find(origin) or self._publish(result.publication(self._spec.description), origin)

    def find_scores(self, version: Version, lease: Lease, num_rows_at_once: int) -> None:
        """Measure, turn by turn, what the gate of the job's alias, if it has one, will ask of the version.

        Raises what `lease` raises; what was measured by then is kept.
        """
        if self._spec.alias is not None:
            model = PlainModel(self._backbone, num_rows_at_once)
            scoring = score_move(self._registry, version.task, self._spec.alias, version.number)
            run_with(lambda asked: take_turns(lease, model.evaluate(asked)), scoring)

    def move_alias(self, version: Version) -> None:
        """Move the job's alias to the version. Raises GateFailed: it scores lower than the alias's present version."""
        if self._spec.alias is not None:
            self._registry.set_alias(version.task, self._spec.alias, version.number)

    def _find(self, origin: Mapping[str, Any]) -> Version | None:
        """What an earlier attempt at this job published before it could record that."""
        try:
            versions = self._registry.versions(self._spec.task)
        except NotFound:
            return None
        return next((version for version in versions if origin.items() <= version.provenance.items()), None)

    def _publish(self, publication: Publication, origin: Mapping[str, Any]) -> Version:
        traced = replace(publication, provenance={**publication.provenance, **origin})
        return self._registry.publish(self._spec.task, traced, alias=None)

    def _describe(self, candidate: Candidate) -> Publication:
        plan = self._run.plan
        return Publication(
            candidate.content,
            template=plan.template,
            labels=plan.labels,
            sampling={} if plan.labels else {"temperature": 0.0, "max_tokens": plan.config.max_target_tokens},
            metrics={f"validation_{candidate.metric}": candidate.value},
            data_sha256=plan.data_hash,
            tuning=asdict(plan.config),
            provenance={"method": self._spec.provenance_method},
            description=self._spec.description,
        )
