"""TuningWork: what becomes of a run's prompts. After a crash it finds the versions that were published before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.engine.threads.device_lease import Lease, take_turns
from app.errors import GateFailed, NotFound, NumericalError, SoftswapError
from app.jobs.work import Candidate
from app.measure.plain_model import PlainModel
from app.measure.promote import run_with, score_move
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.reference import name_together
from app.registry.registry import Registry
from app.registry.version import Version
from app.tuning.job.reporter import Reporter
from app.tuning.job.spec import JobSpec
from app.tuning.result import TuneResult
from app.tuning.run.run import TuningRun


class TuningWork:
    """See `app.jobs.work.Work`; a candidate's content is the prompt.

    The provenance of the versions says which job and step they are from.
    """

    def __init__(
        self,
        backbone: Backbone,
        registry: Registry,
        job_id: str,
        spec: JobSpec,
        run: TuningRun,
        reporter: Reporter,
    ) -> None:
        self._backbone = backbone
        self._registry = registry
        self._job_id = job_id
        self._spec = spec
        self.run = run
        self._reporter = reporter
        self._published: list[Version] = []

    def find_candidate(self, published_step: int) -> Candidate | None:
        leader = self.run.leader
        if leader is None or leader.best is None or leader.best.step <= published_step:
            return None
        best, prompt = leader.best, leader.best_prompt(self._backbone)
        return Candidate(best.step, best.score.metric, best.score.value, self._reporter.train_loss, prompt)

    def publish_checkpoint(self, candidate: Candidate) -> str:
        """A version without an alias."""
        origin = {"job": self._job_id, "checkpoint_step": candidate.step}
        return (self._find(origin) or self._publish(self._describe(candidate), origin)).id

    @property
    def failure(self) -> SoftswapError | None:
        if self.run.result.stop_reason != "not finite":
            return None
        return NumericalError("tuning diverged: no member's loss is finite any more; try smaller learning rates")

    @property
    def best(self) -> Candidate:
        result = self.run.result
        is_best = (result.best_step, result.member)
        event = next(event for event in result.history if (event.step, event.member) == is_best)
        return Candidate(event.step, event.metric, event.value, self._reporter.train_loss, result.prompt)

    def publish_result(self) -> str:
        """The version that the job is for, and the others of its ensemble, still without an alias."""
        result = self.run.result
        self._published = [self._publish_one(each) for each in (result, *result.others)]
        return self._published[0].id

    def measure_result(self, lease: Lease) -> None:
        """Turn by turn, what the gate of the job's alias, if it has one, will ask of the version."""
        if self._spec.alias is not None:
            version = self._published[0]
            model = PlainModel(self._backbone, self.run.num_rows_at_once)
            scoring = score_move(self._registry, version.task, self._spec.alias, version.number)
            run_with(lambda asked: take_turns(lease, model.evaluate(asked)), scoring)

    def release(self) -> str | None:
        """Move the job's alias to the version, unless it scores lower than the alias's present one."""
        version, alias = self._published[0], self._spec.alias
        try:
            if alias is not None:
                self._registry.set_alias(version.task, alias, version.number)
        except GateFailed as error:
            return f"{alias} stays where it is: {error.message}"
        return None

    @property
    def note(self) -> str:
        report = self.run.result.distillation
        notes = report.in_words().splitlines() if report else []
        if len(self._published) > 1:
            notes.append(f"{name_together(each.id for each in self._published)} answers as an ensemble")
        return "".join(f"; {note}" for note in notes)

    def _publish_one(self, result: TuneResult) -> Version:
        origin = {"job": self._job_id, "result_step": result.best_step, "result_member": result.member}
        return self._find(origin) or self._publish(result.publication(self._spec.description), origin)

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
        return self.run.plan.publication(
            candidate.content,
            metrics={f"validation_{candidate.metric}": candidate.value},
            provenance={"method": self.run.plan.method},
            description=self._spec.description,
        )
