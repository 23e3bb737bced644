"""TuningWork: what becomes of one attempt at a tuning job: checkpoints on the way, and a result that is released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from app.engine.threads.device_lease import Lease, take_turns
from app.errors import InvalidInput, NotFound, NumericalError, SoftswapError
from app.jobs.work import Candidate
from app.measure.plain_model import PlainModel
from app.measure.promote import run_with
from app.measure.release import Comparison, Release, release
from app.model.backbone import Backbone
from app.model.threads import by_load
from app.registry.publication import Publication
from app.registry.reference import name_together
from app.registry.registry import Registry
from app.registry.version import Version
from app.tuning.distillation import DistillationPlan
from app.tuning.job.reporter import Reporter
from app.tuning.plan import TuningPlan
from app.tuning.run.run import TuningRun

if TYPE_CHECKING:
    from app.registry.kept.examples import TunedOn
    from app.tuning.job.kind import JobSpec


@dataclass(eq=False)
class TuningWork:
    """See `app.jobs.work.Work`; a candidate's content is the prompt.

    The provenance of the versions says which job and step they are from.
    """

    backbone: Backbone
    registry: Registry
    job_id: str
    spec: JobSpec
    num_checkpoints_kept: int
    asked: TuningPlan | DistillationPlan
    run: TuningRun
    reporter: Reporter
    published: Sequence[Version] = ()
    comparison: Comparison | None = None
    released: Release | None = None

    def find_candidate(self, published_step: int) -> Candidate | None:
        leader = self.run.population.leader
        if leader is None or leader.best is None or leader.best.step <= published_step:
            return None
        best, prompt = leader.best, leader.best_prompt(self.backbone)
        return Candidate(best.step, best.score.metric, best.score.value, self.reporter.train_loss, prompt)

    def publish_checkpoint(self, candidate: Candidate) -> str:
        """A version without an alias."""
        origin = {"job": self.job_id, "checkpoint_step": candidate.step}
        publication = self.run.plan.publication(
            candidate.content,
            metrics={f"validation_{candidate.metric}": candidate.value},
            provenance={"method": self.run.plan.method},
            description=self.spec.description,
        )
        return self._publish_once(publication, origin).id

    def remove_checkpoint(self, name: str) -> bool:
        """It stays if an alias names it."""
        task, _, number = name.partition("@")
        try:
            self.registry.delete_version(task, int(number))
        except InvalidInput:
            return False
        except NotFound:
            return True
        return True

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
        return Candidate(event.step, event.metric, event.value, self.reporter.train_loss, result.prompt)

    def publish_result(self) -> str:
        """The version that the job is for, and the others of its ensemble, still without an alias."""
        published = []
        for each in (self.run.result, *self.run.result.others):
            origin = {"job": self.job_id, "result_step": each.best_step, "result_member": each.member}
            published.append(self._publish_once(each.publication(self.spec.description), origin))
        self.published = published
        return published[0].id

    def measure_result(self, lease: Lease) -> None:
        """Turn by turn, what decides whether the job's alias, if it has one, may move to the version."""
        if self.spec.alias is not None:
            model = PlainModel(self.backbone, self.run.num_rows_at_once)
            comparing = self.run.result.compare_with(self.registry, self.published[0], self.spec.alias)
            self.comparison = run_with(lambda asked: take_turns(lease, by_load(model.evaluate(asked))), comparing)

    def release(self) -> str | None:
        """Move the job's alias to the version, if it may."""
        version, spec = self.published[0], self.spec
        self.released = release(self.registry, version, spec.alias, self.comparison, is_told=spec.promote)
        return None if self.released.is_moved else self.released.words or None

    @property
    def note(self) -> str:
        report = self.run.result.distillation
        notes = report.in_words().splitlines() if report else []
        if self.run.result.loses_to_written:
            notes.append(self.run.result.comparison_in_words)
        if self.released is not None and self.released.is_moved and self.released.words:
            notes.append(self.released.words)
        if len(self.published) > 1:
            notes.append(f"{name_together(each.id for each in self.published)} answers as an ensemble")
        return "".join(f"; {note}" for note in notes)

    @cached_property
    def _examples(self) -> TunedOn | None:
        """What the task keeps: all examples of a plan that has them, of a distillation those the teacher answered."""
        plan = self.asked if isinstance(self.asked, TuningPlan) else self.run.plan
        return plan.tuned_on if self.spec.keep_examples else None

    def _publish_once(self, publication: Publication, origin: Mapping[str, Any]) -> Version:
        """Without an alias, or what an earlier attempt at this job published before it could record that."""
        try:
            versions = self.registry.versions(self.spec.task)
        except NotFound:
            versions = []
        for version in versions:
            if origin.items() <= version.provenance.items():
                return version
        traced = replace(publication, provenance={**publication.provenance, **origin}, examples=self._examples)
        return self.registry.publish(self.spec.task, traced, alias=None)
