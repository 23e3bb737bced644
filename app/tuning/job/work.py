"""TuningWork: a run as the runner of jobs sees it, and what becomes of its prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import GateFailed, NumericalError, SoftswapError
from app.jobs.work import Candidate
from app.registry.reference import name_together
from app.tuning.job.reporter import Reporter

if TYPE_CHECKING:
    from app.engine.threads.slices import Lease
    from app.model.backbone import Backbone
    from app.registry.version import Version
    from app.tuning.distillation.distillation_run import DistillationRun
    from app.tuning.job.publisher import Publisher
    from app.tuning.run.run import TuningRun
    from app.tuning.run.run_state import RunState


class TuningWork:
    """See `app.jobs.work.Work`; a candidate's content is the prompt."""

    def __init__(
        self, backbone: Backbone, run: TuningRun | DistillationRun, publisher: Publisher, reporter: Reporter
    ) -> None:
        self._backbone = backbone
        self._run = run
        self._publisher = publisher
        self._reporter = reporter
        self._published: list[Version] = []

    @property
    def step(self) -> int:
        return self._run.step

    @property
    def num_steps(self) -> int:
        return self._run.num_steps

    @property
    def can_save(self) -> bool:
        return self._run.can_save

    @property
    def is_done(self) -> bool:
        return self._run.is_done

    def prepare(self) -> None:
        self._run.prepare()

    def advance(self) -> None:
        self._run.advance()

    def state(self) -> RunState:
        return self._run.state()

    def find_candidate(self, published_step: int) -> Candidate | None:
        leader = self._run.leader
        if leader is None or leader.best is None or leader.best.step <= published_step:
            return None
        best, prompt = leader.best, leader.best_prompt(self._backbone)
        return Candidate(best.step, best.score.metric, best.score.value, self._reporter.train_loss, prompt)

    def publish_checkpoint(self, candidate: Candidate) -> str:
        return self._publisher.publish_checkpoint(candidate).id

    @property
    def failure(self) -> SoftswapError | None:
        if self._run.result.stop_reason != "not finite":
            return None
        return NumericalError("tuning diverged: no member's loss is finite any more; try smaller learning rates")

    @property
    def best(self) -> Candidate:
        result = self._run.result
        is_best = (result.best_step, result.member)
        event = next(event for event in result.history if (event.step, event.member) == is_best)
        return Candidate(event.step, event.metric, event.value, self._reporter.train_loss, result.prompt)

    def publish_result(self) -> str:
        result = self._run.result
        self._published = [self._publisher.publish_result(each) for each in (result, *result.others)]
        return self._published[0].id

    def measure_result(self, lease: Lease) -> None:
        self._publisher.find_scores(self._published[0], lease, self._run.num_rows_at_once)

    def release(self) -> str | None:
        try:
            self._publisher.move_alias(self._published[0])
        except GateFailed as error:
            return f"{self._publisher.alias} stays where it is: {error.message}"
        return None

    @property
    def note(self) -> str:
        notes = self._run.result.note.splitlines()
        if len(self._published) > 1:
            notes.append(f"{name_together(each.id for each in self._published)} answers as an ensemble")
        return "".join(f"; {note}" for note in notes)
