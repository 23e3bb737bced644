"""A run with a budget ends in time on a clock that the test turns, whatever its slices take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.measure.dataset import Example
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Init, TuneConfig
from app.tuning.distillation import DistillationPlan
from app.tuning.plan import TuningPlan, WrittenPrompt
from app.tuning.run.events import (
    Evaluated,
    MembersDropped,
    PromptWritten,
    StepDone,
    TuneEvent,
    TuningPlanned,
    TuningStarted,
    TuningStopped,
)
from app.tuning.run.run import DEVICE_TO_MAX_TOKENS, TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import Search
from tests.support.models import tiny_backbone

LABELS = ("no", "yes")
EXAMPLES = tuple(Example(("zz", "qq")[i % 2] + " abc"[: i % 4], LABELS[i % 2]) for i in range(64))
WRITTEN = (
    WrittenPrompt("zz is no, qq is yes\n", Template("{input}\nA: {target}")),
    WrittenPrompt("Is it qq?\n", Template("Q: {input}\nA: {target}")),
)
BUDGET_S = 600.0


class HandClock:
    """Every slice of the run takes `slice_s()` seconds."""

    def __init__(self, slice_s: Callable[[], float]) -> None:
        self.now_s = 1000.0
        self._slice_s = slice_s

    def __call__(self) -> float:
        return self.now_s

    def turn(self) -> None:
        self.now_s += self._slice_s()


def make_plan(config: TuneConfig | None = None, **changes: object) -> TuningPlan:
    config = config or TuneConfig(budget_s=BUDGET_S, max_target_tokens=8)
    made = TuningPlan(EXAMPLES, EXAMPLES[:40], Template(), LABELS, config, Search(), written=WRITTEN)
    return replace(made, **changes)  # type: ignore[arg-type]


def follow(run: TuningRun, clock: HandClock, until: Callable[[], bool] = lambda: False) -> None:
    while not run.is_done and not until():
        run.prepare()
        run.advance()
        clock.turn()


def start(
    plan: TuningPlan | DistillationPlan, clock: HandClock, **more: object
) -> tuple[TuningRun, list[TuneEvent], Backbone]:
    backbone, events = tiny_backbone(), list[TuneEvent]()
    run = TuningRun(backbone, plan, on_event=events.append, clock=clock, **more)  # type: ignore[arg-type]
    return run, events, backbone


def ticking(monkeypatch: pytest.MonkeyPatch, clock: HandClock) -> None:
    """Costs are taken from the same clock: half a slice a forward."""
    monkeypatch.setattr("app.tuning.run.trainer.time.perf_counter", lambda: _ticked(clock))


def _ticked(clock: HandClock) -> float:
    clock.turn()
    return clock.now_s


@pytest.mark.parametrize("slice_s", [0.3, 2.0])
def test_a_run_ends_within_its_budget_and_uses_it(slice_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, budget_s = HandClock(lambda: slice_s), 500 * slice_s
    ticking(monkeypatch, clock)
    run, events, _ = start(make_plan(TuneConfig(budget_s=budget_s, max_target_tokens=8)), clock)
    follow(run, clock)
    took_s = clock.now_s - 1000.0
    assert 0.75 * budget_s < took_s <= 1.05 * budget_s
    assert run.result.stop_reason == "budget"
    planned = next(event for event in events if isinstance(event, TuningPlanned))
    first = [event for event in events if isinstance(event, Evaluated) and event.step == 0]
    assert len(first) == planned.num_members == len(run.result.plan.members)
    assert run.result.prompt.rows is not None


def test_a_machine_that_becomes_slow_makes_fewer_updates_and_does_not_end_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = {}
    for slowdown in (1.0, 8.0):
        clock = HandClock(lambda: 2.0)
        ticking(monkeypatch, clock)
        plan = make_plan(TuneConfig(budget_s=BUDGET_S, max_target_tokens=8, batch_size=8))
        run, events, _ = start(plan, clock)
        follow(run, clock, until=lambda: run.step >= 3)  # noqa: B023  used before the next round
        clock._slice_s = lambda: 2.0 * slowdown  # noqa: B023
        follow(run, clock)
        steps[slowdown] = run.step
        assert clock.now_s - 1000.0 <= 1.2 * BUDGET_S
        told = [event for event in events if isinstance(event, StepDone)]
        assert told[-1].num_steps - told[-1].step <= 2, "the schedule of learning rates reaches its end"
    assert 3 <= steps[8.0] < steps[1.0] / 2


def test_an_update_that_would_never_end_is_given_up_and_the_best_so_far_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = HandClock(lambda: 2.0)
    ticking(monkeypatch, clock)
    run, events, _ = start(make_plan(TuneConfig(budget_s=BUDGET_S, max_target_tokens=8, micro_batch_size=2)), clock)
    follow(run, clock, until=lambda: run.step >= 2)
    clock._slice_s = lambda: 700.0
    follow(run, clock, until=lambda: isinstance(events[-1], TuningStopped))
    assert run.step == 2
    assert isinstance(events[-1], TuningStopped)
    assert events[-1].reason == "budget"


def test_the_template_and_the_start_are_those_of_the_best_written_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 1.0)
    ticking(monkeypatch, clock)
    run, events, _ = start(make_plan(TuneConfig(budget_s=60.0, max_target_tokens=8)), clock)
    follow(run, clock)
    told = next(event for event in events if isinstance(event, PromptWritten))
    chosen = next(each for each in WRITTEN if each.text == told.text)
    assert run.result.plan.template == chosen.template
    first = run.result.plan.members[0]
    assert (first.kind, first.init, first.init_text) == (PromptKind.KV, Init.TEXT, chosen.text)
    assert run.result.written is not None
    assert run.result.written.prompt == chosen
    assert run.result.written.evaluation.metrics["num_examples"] == len(run.result.measured_on)


def test_values_that_are_asked_for_replace_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 0.5)
    ticking(monkeypatch, clock)
    search = Search.asked({"kind": (PromptKind.EMBEDDINGS,), "learning_rate": (0.2,), "num_virtual_tokens": (3,)})
    run, _, _ = start(make_plan(search=search, written=()), clock)
    follow(run, clock, until=lambda: run.step > 0)
    members = run.plan.members
    assert {(each.kind, each.learning_rate, each.num_virtual_tokens) for each in members} == {
        (PromptKind.EMBEDDINGS, 0.2, 3)
    }
    assert len(set(members)) == len(members)


def test_a_number_of_updates_is_respected_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 0.1)
    ticking(monkeypatch, clock)
    run, events, _ = start(make_plan(TuneConfig(budget_s=BUDGET_S, max_steps=4, max_target_tokens=8)), clock)
    follow(run, clock)
    assert (run.step, run.result.stop_reason) == (4, "finished")
    assert next(event for event in events if isinstance(event, TuningStarted)).num_steps == 4


def test_a_saved_run_continues_with_its_plan_and_with_what_it_had_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 2.0)
    ticking(monkeypatch, clock)
    plan = make_plan(TuneConfig(budget_s=BUDGET_S, max_target_tokens=8, batch_size=8))
    run, _, _ = start(plan, clock)
    follow(run, clock, until=lambda: run.step >= 3 and run.can_save)
    spent_s = clock.now_s - 1000.0
    saved = RunState.from_bytes(run.state().to_bytes())

    later = HandClock(lambda: 2.0)
    later.now_s = 50_000.0
    again, events, _ = start(plan, later, state=saved)
    follow(again, later)
    assert not any(isinstance(event, PromptWritten | TuningPlanned) for event in events)
    assert again.result.plan.members == run.plan.members
    assert again.result.plan.template == run.plan.template
    assert later.now_s - 50_000.0 + spent_s <= 1.1 * BUDGET_S


def test_a_teacher_that_is_slow_answers_some_inputs_of_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 2.0)
    ticking(monkeypatch, clock)
    backbone = tiny_backbone()
    teacher = TaskPrompt.from_text("ab", backbone.tokenizer("ab")["input_ids"], backbone.fingerprint)
    plan = DistillationPlan.make(
        [f"input {i}" for i in range(2000)],
        teacher=teacher,
        template=Template(),
        labels=LABELS,
        config=TuneConfig(budget_s=200.0, max_target_tokens=8),
        search=Search.asked({"num_virtual_tokens": (4,)}),
    )
    run, _, _ = start(plan, clock)
    follow(run, clock)
    assert clock.now_s - 1000.0 <= 1.2 * 200
    assert 0 < len(run.result.plan.train) < 1500
    assert len(run.result.measured_on) > 1


def test_several_prompts_are_kept_of_those_that_the_plan_chooses() -> None:
    plan = make_plan(TuneConfig(budget_s=20.0, max_target_tokens=8), search=Search.asked({"num_kept": 2}))
    run, events, _ = start(plan, time.monotonic)
    while not run.is_done:
        run.prepare()
        run.advance()
    assert len(run.result.others) == 1
    planned = next(event for event in events if isinstance(event, TuningPlanned))
    assert planned.num_members >= 2


def test_the_last_cut_leaves_the_best_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(lambda: 0.4)
    ticking(monkeypatch, clock)
    run, events, _ = start(make_plan(), clock)
    follow(run, clock)
    dropped = [event for event in events if isinstance(event, MembersDropped)]
    planned = next(event for event in events if isinstance(event, TuningPlanned))
    assert planned.num_members > 2
    assert sum(len(event.members) for event in dropped) == planned.num_members - 1
    assert dropped[-1].step <= planned.num_steps * 0.6


def test_what_is_measured_at_the_end_does_not_change_what_the_version_says_of_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock decides how many examples the result is measured on, and not which ones it was given."""
    clock = HandClock(lambda: 2.0)
    ticking(monkeypatch, clock)
    plan = make_plan()
    run, _, _ = start(plan, clock)
    follow(run, clock, until=lambda: run.step >= 3)
    clock._slice_s = lambda: 80.0
    follow(run, clock)
    result = run.result
    assert len(result.measured_on) < len(plan.validation)
    assert set(result.measured_on) <= set(plan.validation)
    assert result.plan.data_hash == plan.data_hash
    assert result.provenance["num_validation"] == len(result.measured_on)
    assert result.validation.metrics["num_examples"] == len(result.measured_on)


def test_a_forward_has_a_bounded_number_of_tokens() -> None:
    """A long text among short ones is one of its own, and a run that has the device to itself is bounded too."""
    run, _, backbone = start(make_plan(TuneConfig(max_steps=1), written=()), time.monotonic)
    most = DEVICE_TO_MAX_TOKENS[backbone.device.type]
    assert run.chunker.max_tokens == most
    rows = [replace(run.rows.train[0], text_ids=(1,) * length) for length in (most, 5, 5, most // 2, 5, 5)]
    chunks = list(run.chunker.chunks(rows, 1))
    assert [len(chunk.rows) for chunk in chunks] == [1, 1, 4]


def test_a_task_that_writes_keeps_time_for_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer takes many forwards, of which each takes a slice."""
    clock = HandClock(lambda: 0.5)
    ticking(monkeypatch, clock)
    examples = tuple(Example(f"{i}", f"{'ab'[i % 2] * 3}{i}") for i in range(64))
    plan = make_plan(train=examples, validation=examples[:40], labels=())
    run, events, _ = start(plan, clock)
    follow(run, clock)
    planned = next(event for event in events if isinstance(event, TuningPlanned))
    assert planned.num_final <= 40
    assert clock.now_s - 1000.0 <= 1.05 * BUDGET_S
