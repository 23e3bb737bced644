"""TuningRun: learns soft prompts for a frozen backbone (Lester et al. 2021), slice by slice.

The rows of the prompts are the only parameters. They are float32 on a backbone of any dtype, and are learned in units
of their natural size (the vocabulary's embeddings, or a layer's keys), so learning rates mean the same on every
backbone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice

import torch

from app.engine.threads.device_lease import Slices
from app.errors import InvalidInput, NumericalError
from app.measure.encoding import EncodedExample, shuffled_batches
from app.measure.evaluation import Measurement
from app.measure.plain_model import PlainModel
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.tuning.config import AXES
from app.tuning.distillation import DistillationPlan, Teaching
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import Evaluated, MembersDropped, OnEvent, StepDone, Taught, TuningStarted, TuningStopped
from app.tuning.run.objective import choose_objective
from app.tuning.run.population import Member, Population, make_member
from app.tuning.run.rows import Chunker, RunRows
from app.tuning.run.run_state import RunState
from app.tuning.run.trainer import Trainer
from app.tuning.search import keep_better_half


class TuningRun:
    """Call `prepare` and `advance` until `is_done`, then read `result`. Every `advance` holds the device for one slice.

    Of a distillation the teacher answers first; what is known of the student's plan and rows is known from then on.

    Args:
        state: of an earlier run of the same plan, to continue from.
        slice_s: seconds a slice should take; None leaves the size of micro-batches to the configuration.
        on_event: called within `prepare` and `advance`.

    Attributes: can_save: whether the last slice completed an update, or some of the teacher's answers.

    Raises:
        InvalidInput: a target that is too long, a prompt that leaves no room for text, the state of another run.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: TuningPlan | DistillationPlan,
        *,
        state: RunState | None = None,
        slice_s: float | None = None,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self._backbone = backbone
        self._slice_s = slice_s
        self._on_event = on_event
        self.population = Population(backbone)
        self.step = 0
        self.num_steps = plan.config.num_steps(len(plan.train))
        self._history: list[Evaluated] = []
        self._num_worse = 0
        self._elapsed_s = 0.0
        self._is_stopping = False
        self.can_save = False
        self._result: TuneResult | None = None
        self._teaching: Teaching | None = None
        self._has_plan = False
        if isinstance(plan, TuningPlan):
            self._set_up(plan, state)
            return
        self._teaching = Teaching(backbone, plan, state)
        self._work = self._teaching.slices()
        if self._teaching.student_state is not None:
            self._set_up(self._teaching.plan_student(), self._teaching.student_state)

    def _set_up(self, plan: TuningPlan, state: RunState | None) -> None:
        self.plan = plan
        self._digest = plan.digest(self._backbone.fingerprint)
        if state is not None and state.record.get("plan") != self._digest:
            raise InvalidInput("the saved state belongs to another tuning run", param="state")
        self.rows = RunRows.of(self._backbone, plan)
        objective = choose_objective(self._backbone, plan, self.rows.train)
        self.chunker = Chunker(
            max_rows=min(plan.config.micro_batch_size, objective.max_rows), num_extra_tokens=objective.num_extra_tokens
        )
        self._trainer = Trainer(self._backbone, objective, self.population, self.chunker, self._on_event)
        self.num_steps = plan.config.num_steps(len(self.rows.train))
        self._elapsed_s, self.can_save, self._has_plan = 0.0, False, True
        self._work = self._slices(state)

    @property
    def is_done(self) -> bool:
        return self._result is not None

    @property
    def result(self) -> TuneResult:
        assert self._result is not None, "the run is not done"
        return self._result

    @property
    def num_rows_at_once(self) -> int:
        """Rows of a forward that measures: as many as fit a slice at any length."""
        return self.chunker.num_rows_within(self.rows.validation)

    def prepare(self) -> None:
        """Once the teacher has answered, encode for the student, which may take a while and needs no device.

        Raises what the run and `plan_student` raise.
        """
        if self._teaching is not None and self._teaching.is_done and not self._has_plan:
            self._on_event(Taught(self._teaching.num_answers))
            self._set_up(self._teaching.plan_student(), None)

    def advance(self) -> None:
        """Compute one slice.

        Raises:
            BackboneMismatch, InvalidInput: a member cannot start as its configuration says.
            NumericalError: nothing finite was ever measured.
            OutOfMemory: not even one row fits.
        """
        began = time.monotonic()
        self.can_save = bool(next(self._work, False))
        self._elapsed_s += time.monotonic() - began

    def stop(self) -> None:
        """End after the present update: the best state so far is measured and kept."""
        self._is_stopping = True

    def state(self) -> RunState:
        assert self.can_save, "a run can only be saved between two updates"
        if self._teaching is None:
            return self._state()
        return self._teaching.state(self._state() if self._has_plan else None)

    def _state(self) -> RunState:
        members = self.population.members
        record = {
            "plan": self._digest,
            "step": self.step,
            "num_worse": self._num_worse,
            "elapsed_s": self._elapsed_s,
            "num_tokens_computed": self._trainer.num_tokens_computed,
            "num_tokens_trained": self._trainer.num_tokens_trained,
            "chunker": self.chunker.as_dict(),
            "history": [asdict(event) for event in self._history],
            "members": [member.record() for member in members],
        }
        named = {f"{m.number}.{name}": tensor for m in members for name, tensor in m.tensors().items()}
        return RunState(record, named)

    def _slices(self, state: RunState | None) -> Iterator[bool | None]:
        """The whole run. It yields True where it can be saved."""
        yield from self._make_members()
        if state is None:
            yield from self._begin()
        else:
            self._restore(state)
        config = self.plan.config
        order = torch.Generator().manual_seed(config.seed)
        batches = shuffled_batches(self.rows.train, config.batch_size, order, balance=config.balance)
        batches = islice(batches, self.step, None)
        while (reason := self._reason_to_end()) is None:
            yield from self._update([self.rows.train[i] for i in next(batches)])
            if self.population.alive and self._is_time_to_measure():
                yield from self._measure()
                self._cut()
            yield True
        yield from self._finish(reason)

    def _make_members(self) -> Iterator[None]:
        configs = self.plan.members
        for number, config in enumerate(configs):
            self.population.members.append(make_member(self._backbone, number, config, self.plan, self.rows.train))
            yield
        num_parameters = sum(member.initial.numel() for member in self.population.members)
        described = tuple({axis.name: getattr(config, axis.name) for axis in AXES} for config in configs)
        num_train, num_validation = len(self.rows.train), len(self.rows.validation)
        self._on_event(TuningStarted(self.num_steps, num_train, num_validation, num_parameters, described))

    def _begin(self) -> Iterator[bool | None]:
        if self._slice_s is not None:
            yield from self._trainer.calibrate(self.rows.train, self._slice_s)
        yield from self._measure()
        if self.population.leader is None:
            raise NumericalError("the backbone's answers are not finite even before tuning")
        yield True

    def _restore(self, state: RunState) -> None:
        record = state.record
        self.step, self._num_worse, self._elapsed_s = record["step"], record["num_worse"], record["elapsed_s"]
        self._trainer.num_tokens_computed = record["num_tokens_computed"]
        self._trainer.num_tokens_trained = record["num_tokens_trained"]
        self.chunker.restore(record["chunker"])
        self._history = [Evaluated(**event) for event in record["history"]]
        for member, known in zip(self.population.members, record["members"], strict=True):
            member.restore(known, state.tensors_under(f"{member.number}."))

    def _reason_to_end(self) -> str | None:
        patience = self.plan.config.patience
        if not self.population.alive:
            return "not finite"
        if self.step >= self.num_steps:
            return "finished"
        is_settled = self.plan.search.is_settled_at(self.step, self.num_steps)
        if patience and self._num_worse >= patience and is_settled:  # until then, late learners may still catch up
            return "patience"
        return "stopped" if self._is_stopping else None

    def _update(self, rows: Sequence[EncodedExample]) -> Iterator[None]:
        alive, num_before = self.population.alive, self._trainer.num_tokens_trained
        member_to_loss = yield from self._trainer.update(rows, self.step, self.num_steps)
        self.step += 1
        self._drop([member for member in alive if member not in member_to_loss], "not finite")
        if member_to_loss:
            self._report(member_to_loss, self._trainer.num_tokens_trained - num_before)

    def _report(self, member_to_loss: Mapping[Member, float], num_tokens: int) -> None:
        """The leader's loss, or another's if the leader is no longer trained."""
        shown = max(member_to_loss, key=lambda member: member.best_rank)
        learning_rate = shown.config.learning_rate_at(self.step - 1, self.num_steps)
        loss = member_to_loss[shown]
        so_far = self._trainer.num_tokens_trained
        self._on_event(StepDone(self.step, self.num_steps, loss, learning_rate, self._elapsed_s, num_tokens, so_far))

    def _is_time_to_measure(self) -> bool:
        every = self.plan.config.num_steps_between_evals(self.num_steps)
        return self.step % every == 0 or self.step == self.num_steps or self._is_time_to_cut

    @property
    def _is_time_to_cut(self) -> bool:
        is_moment = self.plan.search.is_cut_at(self.step, self.num_steps)
        return is_moment and len(self.population.alive) > self.plan.search.num_kept

    def _measure(self) -> Iterator[None]:
        best_before = self.population.leader and self.population.leader.best
        member_to_score = yield from self._trainer.measure(self.rows.validation)
        for member, score in member_to_score.items():
            member.keep_if_best(score, self.step)
        has_improved = self.population.leader is not None and self.population.leader.best is not best_before
        self._num_worse = 0 if has_improved else self._num_worse + 1
        for member, score in member_to_score.items():
            is_best = has_improved and member is self.population.leader
            self._history.append(Evaluated(self.step, score.metric, score.value, is_best, member.number))
            self._on_event(self._history[-1])
        self._drop([member for member, score in member_to_score.items() if not score.is_finite], "not finite")

    def _cut(self) -> None:
        """Drop the worse half of the members, if it is time."""
        if self._is_time_to_cut:
            alive = self.population.alive
            kept = keep_better_half([member.best_rank for member in alive], self.plan.search.num_kept)
            self._drop([member for i, member in enumerate(alive) if i not in kept], "halving")

    def _drop(self, members: Sequence[Member], reason: str) -> None:
        """They are no longer trained; their best states stay."""
        for member in members:
            member.is_alive = False
        if members:
            self._on_event(MembersDropped(self.step, tuple(member.number for member in members), reason))

    def _finish(self, reason: str) -> Iterator[None]:
        ranked = self.population.ranked[: self.plan.search.num_kept]
        assert ranked[0].best is not None
        self._on_event(TuningStopped(self.step, reason, ranked[0].best.step))
        results = []
        for member in ranked:
            results.append((yield from self._evaluate(member, reason)))  # noqa: PERF401  comprehensions cannot yield
        self._result = replace(results[0], others=tuple(results[1:]))

    def _evaluate(self, member: Member, reason: str) -> Slices[TuneResult]:
        """Measure a member's best state on all validation examples."""
        plan = self.plan
        assert member.best is not None
        prompt = member.best_prompt(self._backbone)
        served = ServedPrompt(
            prompt,
            plan.template,
            plan.labels,
            label_temperature=None,
            max_input_tokens=plan.config.max_input_tokens,
            max_new_tokens=plan.config.max_target_tokens,
        )
        model = PlainModel(self._backbone, self.num_rows_at_once)
        measured = yield from model.evaluate(Measurement(served, plan.validation))
        return TuneResult(
            prompt=prompt,
            initial=member.initial.cpu(),
            plan=plan,
            member=member.number,
            validation=measured,
            history=tuple(self._history),
            best_step=member.best.step,
            num_steps=self.step,
            stop_reason=reason,
            num_tokens_computed=self._trainer.num_tokens_computed,
        )


def tune_task(
    backbone: Backbone,
    plan: TuningPlan | DistillationPlan,
    *,
    on_event: OnEvent = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Tunes a prompt and measures it on validation, alone on the device; the caller publishes it.

    Args: should_stop: asked after every update; the best state so far is kept.

    Raises what the run and its `advance` raise.
    """
    run = TuningRun(backbone, plan, on_event=on_event)
    while not run.is_done:
        run.prepare()
        run.advance()
        if run.can_save and run.step and should_stop():
            run.stop()
    return run.result
