"""TuningRun: learns soft prompts for a frozen backbone (Lester et al. 2021), slice by slice.

The rows of the prompts are the only parameters. They are float32 on a backbone of any dtype, and are learned in units
of their natural size (the vocabulary's embeddings, or a layer's keys), so learning rates mean the same on every
backbone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from app.engine.threads.device_lease import Slices
from app.errors import InvalidInput, NumericalError
from app.measure.encoding import EncodedExample, shuffled_batches
from app.measure.evaluation import Evaluation, Measurement
from app.measure.plain_model import PlainModel
from app.measure.rounding import evaluate_rounded
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import encode_text
from app.model.threads import ThreadsByLoad
from app.task_prompt import TaskPrompt
from app.tuning.config import AXES
from app.tuning.distillation import DistillationPlan, Teaching
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult, WrittenResult
from app.tuning.run.budgeting import Budgeted, with_candidates
from app.tuning.run.events import (
    Evaluated,
    MembersDropped,
    OnEvent,
    OpeningStarted,
    PromptWritten,
    StepDone,
    Taught,
    TeacherAnswered,
    TuningStarted,
    TuningStopped,
    Warned,
)
from app.tuning.run.objective import choose_objective
from app.tuning.run.opening import Opened, Opening
from app.tuning.run.population import Member, Population, make_member
from app.tuning.run.rows import Chunker, RunRows, fit_to_targets, spread
from app.tuning.run.run_state import RunState
from app.tuning.run.timetable import BudgetTimetable, Clock, Timetable
from app.tuning.run.trainer import Trainer
from app.tuning.search import keep_best, keep_better_half

DEVICE_TO_MAX_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of a forward, padding included, of a run that has the device to itself: what memory holds, and, on a CPU, what
takes seconds.
"""
COSTS_SHARE = 0.02
"""Of the budget, for finding out what a row takes."""


class TuningRun:
    """Call `prepare` and `advance` until `is_done`, then read `result`. Every `advance` holds the device for one slice.

    Of a distillation the teacher answers first; what is known of the student's plan and rows is known from then on.
    With a budget of time, written prompts are compared first, and the plan is made for the time that is left.

    Args:
        state: of an earlier run of the same plan, to continue from.
        slice_s: seconds a slice should take; None leaves the size of micro-batches to the configuration.
        on_event: called within `prepare` and `advance`.
        began_s: by `clock`, when the budget began to run; None: now. Of a state, what it had spent counts.
        clock: monotonic seconds.

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
        began_s: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._backbone = backbone
        self._slice_s = slice_s
        self._on_event = on_event
        self._clock = clock
        spent_s = 0.0 if state is None else state.record.get("spent_s", 0.0)
        self._began_s = clock() - spent_s if began_s is None or state is not None else began_s
        self._threads = ThreadsByLoad(torch.get_num_threads())
        self.population = Population(backbone)
        self.step = 0
        self._history: list[Evaluated] = []
        self._num_worse = 0
        self._elapsed_s = 0.0
        self._is_stopping = False
        self.can_save = False
        self._result: TuneResult | None = None
        self._work: Iterator[bool | None]
        self._teaching: Teaching | None = None
        self._opening: Opening | None = None
        self._has_told_opening = False
        self._budget_s = plan.config.budget_s
        self._num_answers_told = -1
        self._opened: Opened | None = None
        self._budgeted: Budgeted | None = None
        self._timetable: Timetable | None = None
        self._has_plan = False
        self._num_asked_steps = plan.config.num_steps(len(plan.train))
        if isinstance(plan, TuningPlan):
            self._open(plan, state)
            return
        self._teaching = Teaching(backbone, plan, state, ends_s=self._teaching_end(plan), clock=clock)
        self._work = self._teaching.slices()
        if self._teaching.student_state is not None:
            self._open(self._teaching.plan_student(), self._teaching.student_state)

    def _teaching_end(self, plan: DistillationPlan) -> float | None:
        """A teacher may take up to half of the budget."""
        budget_s = plan.config.budget_s
        return self._began_s + budget_s / 2 if budget_s else None

    def _open(self, plan: TuningPlan, state: RunState | None) -> None:
        """Compare the written prompts first, if there are any and it was not done."""
        self._asked = plan
        self._digest = plan.digest(self._backbone.fingerprint)
        if state is not None and state.record.get("plan") != self._digest:
            raise InvalidInput("the saved state belongs to another tuning run", param="state")
        if not (plan.config.budget_s and plan.written):
            self._set_up(plan, state)
        elif state is not None:
            self._set_up(self._begin_from(Opened.from_record(state.record["opened"])), state)
        else:
            self._opening = Opening(self._backbone, plan, slice_s=self._slice_s, clock=self._clock)
            self._work = self._opening.slices()

    def _begin_from(self, opened: Opened) -> TuningPlan:
        self._opened = opened
        return opened.apply(self._asked)

    def _set_up(self, plan: TuningPlan, state: RunState | None) -> None:
        if plan.config.budget_s:
            init_text = plan.written[self._opened.number].text if self._opened else ""
            plan = with_candidates(plan, self._backbone, init_text)
        self.plan = plan = fit_to_targets(self._backbone, plan)
        self._measured_on = plan.validation
        self.rows = RunRows.of(self._backbone, plan)
        objective = choose_objective(self._backbone, plan, self.rows.train)
        self.chunker = Chunker(
            max_rows=min(plan.config.micro_batch_size, objective.max_rows),
            num_extra_tokens=objective.num_extra_tokens,
            max_tokens=DEVICE_TO_MAX_TOKENS.get(self._backbone.device.type) if self._slice_s is None else None,
        )
        self._trainer = Trainer(self._backbone, objective, self.population, self.chunker, self._on_event)
        self._num_asked_steps = plan.config.num_steps(len(self.rows.train))
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
    def num_steps(self) -> int:
        """Updates of the whole run, as far as is known now."""
        return self._num_asked_steps if self._timetable is None else max(1, self._timetable.num_steps)

    @property
    def num_rows_at_once(self) -> int:
        """Rows of a forward that measures: as many as fit a slice at any length."""
        return self.chunker.num_rows_within(self.rows.validation)

    def prepare(self) -> None:
        """Once the teacher has answered, or a written prompt is chosen, encode, which takes time and needs no device.

        Raises what the run and `plan_student` raise.
        """
        if self._has_plan:
            return
        if self._opening is not None:
            if not self._has_told_opening:
                self._has_told_opening = True
                self._on_event(OpeningStarted(len(self._asked.written), self._left_s))
            if self._opening.opened is not None:
                plan = self._begin_from(self._opening.opened)
                self._on_event(_describe(self._asked, self._opening.opened))
                self._set_up(plan, None)
        elif self._teaching is not None:
            self._tell_answers(self._teaching)
            if self._teaching.is_done:
                self._on_event(Taught(self._teaching.num_answers))
                self._open(self._teaching.plan_student(), None)

    def _tell_answers(self, teaching: Teaching) -> None:
        """Each time there are more, from none on."""
        if teaching.num_answers != self._num_answers_told:
            self._num_answers_told = teaching.num_answers
            left_s = self._left_s if self._budget_s else None
            self._on_event(TeacherAnswered(teaching.num_answers, teaching.num_inputs, left_s))

    def advance(self) -> None:
        """Compute one slice.

        Raises:
            BackboneMismatch, InvalidInput: a member cannot start as its configuration says.
            NumericalError: nothing finite was ever measured.
            OutOfMemory: not even one row fits.
        """
        began = time.monotonic()
        with self._threads.in_use():
            self.can_save = bool(next(self._work, False))
        self._elapsed_s += time.monotonic() - began

    def stop(self) -> None:
        """End after the present update: the best state so far is measured and kept."""
        self._is_stopping = True

    def state(self) -> RunState:
        assert self.can_save, "a run can only be saved between two updates"
        student = self._state() if self._has_plan else None
        state = student if self._teaching is None else self._teaching.state(student)
        assert state is not None
        spent_s = self._clock() - self._began_s
        return RunState({**state.record, "spent_s": spent_s}, state.tensors)

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
        if self._opened is not None:
            record["opened"] = self._opened.record()
        if self._budgeted is not None:
            record["budgeted"] = self._budgeted.record()
            record["timetable"] = self.timetable.record()
        named = {f"{m.number}.{name}": tensor for m in members for name, tensor in m.tensors().items()}
        return RunState(record, named)

    @property
    def timetable(self) -> Timetable:
        assert self._timetable is not None, "the run has not begun"
        return self._timetable

    def _slices(self, state: RunState | None) -> Iterator[bool | None]:
        """The whole run. It yields True where it can be saved."""
        if self.plan.config.budget_s:
            yield from self._fit_budget(state)
        else:
            self._timetable = Timetable(self.plan.config, self.plan.search, len(self.rows.train))
            yield from self._make_members()
            if state is None and self._slice_s is not None:
                yield from self._trainer.calibrate(self.rows.train, self._slice_s)
        self._tell_start()
        if state is None:
            yield from self._begin()
        else:
            self._restore(state)
        config = self.plan.config
        order = torch.Generator().manual_seed(config.seed)
        batches = shuffled_batches(self.rows.train, config.rows_per_update, order, balance=config.balance)
        batches = islice(batches, self.step, None)
        while (reason := self._reason_to_end()) is None:
            if not (yield from self._update([self.rows.train[i] for i in next(batches)])):
                reason = "budget"
                break
            if self.population.alive and self._is_time_to_measure():
                yield from self._measure()
                self._cut()
            yield True
        yield from self._finish(reason)

    def _fit_budget(self, state: RunState | None) -> Iterator[None]:
        """Measure what an update takes, and plan prompts, updates and measurements for the time that is left."""
        if state is not None:
            self._budgeted = Budgeted.from_record(state.record["budgeted"])
            self._adopt(self._budgeted)
            yield from self._make_members()
            return
        yield from self._make_members(1)
        if self._slice_s is not None:
            yield from self._trainer.calibrate(self.rows.train, self._slice_s)
        costs = yield from self._trainer.time_costs(self.rows.train, allowed_s=COSTS_SHARE * self.plan.config.budget_s)
        left_s = self._began_s + self.plan.config.budget_s - self._clock()
        self._budgeted = Budgeted.plan_for(self.plan, self.rows, costs, left_s)
        self._adopt(self._budgeted)
        yield from self._make_members()
        self._on_event(self._budgeted.as_event(self._left_s))

    def _adopt(self, budgeted: Budgeted) -> None:
        self.plan = budgeted.apply(self.plan)
        if self.rows.num_cut:
            self.rows = RunRows.of(self._backbone, self.plan)  # the longest prompt may not be among those that fit
        self.rows = budgeted.apply_to_rows(self.rows)
        ends_s = self._began_s + self.plan.config.budget_s
        self._timetable = budgeted.timetable(self.plan, self.rows, ends_s=ends_s, clock=self._clock)

    @property
    def _left_s(self) -> float:
        """Of the budget."""
        return max(0.0, self._began_s + self._budget_s - self._clock())

    def _make_members(self, num_members: int | None = None) -> Iterator[None]:
        """Those that are still missing of the first `num_members`; of all, if it is None."""
        members = self.population.members
        for number, config in list(enumerate(self.plan.members))[len(members) : num_members]:
            members.append(make_member(self._backbone, number, config, self.plan, self.rows.train))
            yield

    def _tell_start(self) -> None:
        self._warn("cut", self.rows.say_what_is_cut())
        num_parameters = sum(member.initial.numel() for member in self.population.members)
        described = tuple({axis.name: getattr(config, axis.name) for axis in AXES} for config in self.plan.members)
        num_train, num_validation = len(self.rows.train), len(self.rows.validation)
        self._on_event(TuningStarted(self.num_steps, num_train, num_validation, num_parameters, described))

    def _begin(self) -> Iterator[bool | None]:
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
        self.timetable.restore(record.get("timetable", {}))
        self._history = [Evaluated(**event) for event in record["history"]]
        for member, known in zip(self.population.members, record["members"], strict=True):
            member.restore(known, state.tensors_under(f"{member.number}."))

    def _reason_to_end(self) -> str | None:
        patience = self.plan.config.patience
        if not self.population.alive:
            return "not finite"
        if self.step >= self.timetable.num_steps:
            return self.timetable.reason_at_end
        if patience and self._num_worse >= patience and self.timetable.is_settled(self.step):
            return "patience"  # not before: late learners may still catch up
        return "stopped" if self._is_stopping else None

    def _update(self, rows: Sequence[EncodedExample]) -> Slices[bool]:
        """Returns False if there was no time for it: then nothing has changed."""
        alive, num_before, began_s = self.population.alive, self._trainer.num_tokens_trained, self._clock()
        work = self._trainer.update(rows, self.step, self.num_steps)
        member_to_loss = yield from self._while_in_time(work)
        if member_to_loss is None:
            self.population.clear_gradients()
            return False
        self.step += 1
        self._drop([member for member in alive if member not in member_to_loss], "not finite")
        self.timetable.note_update(
            self.step,
            took_s=self._clock() - began_s,
            size=len(alive) * sum(row.num_tokens for row in rows) / self.rows.mean_tokens,
            num_alive=len(self.population.alive),
        )
        if member_to_loss:
            self._report(member_to_loss, self._trainer.num_tokens_trained - num_before)
        return True

    def _while_in_time(self, work: Slices[dict[Member, float]]) -> Slices[dict[Member, float] | None]:
        """What the work returns, or None if it had to be given up."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                losses: dict[Member, float] = end.value
                return losses
            if self.timetable.is_late():
                work.close()
                return None
            yield

    def _report(self, member_to_loss: Mapping[Member, float], num_tokens: int) -> None:
        """The leader's loss, or another's if the leader is no longer trained."""
        shown = max(member_to_loss, key=lambda member: member.best_rank)
        num_steps = max(self.step, self.num_steps)
        learning_rate = shown.config.learning_rate_at(self.step - 1, num_steps)
        loss = member_to_loss[shown]
        so_far = self._trainer.num_tokens_trained
        left_s = self.timetable.seconds_left(self.step)
        self._on_event(StepDone(self.step, num_steps, loss, learning_rate, self._elapsed_s, num_tokens, so_far, left_s))

    def _is_time_to_measure(self) -> bool:
        return self.timetable.is_time_to_measure(self.step) or self._is_time_to_cut

    @property
    def _is_time_to_cut(self) -> bool:
        return self.timetable.is_time_to_cut(self.step) and len(self.population.alive) > self.plan.search.num_kept

    def _measure(self) -> Iterator[None]:
        best_before, began_s = self.population.leader and self.population.leader.best, self._clock()
        member_to_score = yield from self._trainer.measure(self.rows.validation, is_start=self.step == 0)
        for member, score in member_to_score.items():
            member.keep_if_best(score, self.step)
        if self.step:
            self.timetable.note_measurement(took_s=self._clock() - began_s, num_alive=len(member_to_score))
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
            ranks, num_kept = [member.best_rank for member in alive], self.plan.search.num_kept
            is_last = self.timetable.is_last_cut()
            kept = keep_best(ranks, num_kept) if is_last else keep_better_half(ranks, num_kept)
            self._num_worse = 0  # what is left gets time of its own
            self._drop([member for i, member in enumerate(alive) if i not in kept], "halving")
        self.timetable.note_cuts(self.step)

    def _drop(self, members: Sequence[Member], reason: str) -> None:
        """They are no longer trained; their best states stay."""
        for member in members:
            member.is_alive = False
        if members:
            self._on_event(MembersDropped(self.step, tuple(member.number for member in members), reason))

    def _finish(self, reason: str) -> Iterator[None]:
        if isinstance(self.timetable, BudgetTimetable):
            self._measured_on = tuple(spread(self.plan.validation, self.timetable.num_final()))
        ranked = self.population.ranked[: self.plan.search.num_kept]
        assert ranked[0].best is not None
        self._on_event(TuningStopped(self.step, reason, ranked[0].best.step))
        results = []
        for member in ranked:
            results.append((yield from self._evaluate(member, reason)))  # noqa: PERF401  comprehensions cannot yield
        written = yield from self._evaluate_written()
        self._warn("label_mass", results[0].validation.say_low_mass())
        self._result = replace(results[0], others=tuple(results[1:]), written=written)

    def _warn(self, about: str, message: str | None) -> None:
        if message is not None:
            self._on_event(Warned(about, message))

    def _evaluate(self, member: Member, reason: str) -> Slices[TuneResult]:
        """Measure a member's best state as it is to be stored."""
        plan = self.plan
        assert member.best is not None
        ask = partial(self._ask, label_temperature=None)
        prompt, measured = yield from evaluate_rounded(member.best_prompt(self._backbone), ask)
        return TuneResult(
            prompt=prompt,
            initial=member.initial.cpu(),
            plan=plan,
            member=member.number,
            validation=measured,
            measured_on=self._measured_on,
            history=tuple(self._history),
            best_step=member.best.step,
            num_steps=self.step,
            stop_reason=reason,
            num_tokens_computed=self._trainer.num_tokens_computed,
        )

    def _evaluate_written(self) -> Slices[WrittenResult | None]:
        """The written prompt that tuning started from, on the same examples; None if there is none, or no time."""
        if self._opened is None or self._left_s <= 0:
            return None
        written = self._asked.written[self._opened.strongest]
        token_ids = encode_text(self._backbone.tokenizer, written.text)
        prompt = TaskPrompt.from_text(written.text, token_ids, self._backbone.fingerprint)
        return WrittenResult(written, (yield from self._ask(prompt, template=self.plan.limit_inputs(written.template))))

    def _ask(self, prompt: TaskPrompt, **more: Any) -> Slices[Evaluation]:
        """The evaluation of a prompt on the validation examples that there is time for."""
        plan = self.plan
        served = ServedPrompt(
            prompt,
            **{"template": plan.served_template, **more},
            labels=plan.labels,
            max_new_tokens=plan.config.max_target_tokens,
            skip_special_tokens=plan.skip_special_tokens,
        )
        model = PlainModel(self._backbone, self.num_rows_at_once)
        return (yield from model.evaluate(Measurement(served, self._measured_on)))


def _describe(plan: TuningPlan, opened: Opened) -> PromptWritten:
    number = opened.number
    written = plan.written[number]
    metric, values = ("accuracy", opened.accuracies) if opened.accuracies else ("loss", opened.losses)
    return PromptWritten(
        written.text, written.template.text, metric, values[number], opened.num_rows, len(plan.written)
    )


def tune_task(
    backbone: Backbone,
    plan: TuningPlan | DistillationPlan,
    *,
    on_event: OnEvent = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    began_s: float | None = None,
) -> TuneResult:
    """Tunes a prompt and measures it on validation, alone on the device; the caller publishes it.

    Args:
        should_stop: asked after every update; the best state so far is kept.
        began_s: by `time.monotonic`, when the plan's budget began to run; None: now.

    Raises what the run and its `advance` raise.
    """
    run = TuningRun(backbone, plan, on_event=on_event, began_s=began_s)
    while not run.is_done:
        run.prepare()
        run.advance()
        if run.can_save and run.step and should_stop():
            run.stop()
    return run.result
