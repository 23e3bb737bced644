"""Members trained side by side go where each would go alone; an interrupted run continues as if it never stopped."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from app.errors import CorruptPrompt, InvalidInput, OutOfMemory
from app.measure.dataset import Example
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import PromptKind
from app.tuning.config import Loss, OptimizerKind, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.events import Evaluated, MembersDropped, MicroBatchLowered, StepDone, TuneEvent
from app.tuning.run.objective import LabelObjective
from app.tuning.run.run import TuningRun, tune_task
from app.tuning.run.run_state import RunState
from app.tuning.run.trainer import Trainer
from app.tuning.search import Search
from tests.support.models import tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
LABELS = ("no", "yes")
EXAMPLES = tuple(Example(("zz", "qq")[i % 2] + " abc"[: i % 4], LABELS[i % 2]) for i in range(24))
CONFIG = TuneConfig(
    num_virtual_tokens=8, batch_size=8, max_steps=12, eval_every=4, learning_rate=0.1, max_target_tokens=8
)
VALUES = {
    "kind": (PromptKind.EMBEDDINGS, PromptKind.KV),
    "learning_rate": (0.05, 0.2),
    "num_virtual_tokens": (3, 8),
}
SEARCH = Search(VALUES, num_cuts=0)


def plan(config: TuneConfig = CONFIG, search: Search = SEARCH, labels: tuple[str, ...] = LABELS) -> TuningPlan:
    return TuningPlan(EXAMPLES, EXAMPLES, TEMPLATE, labels, config, search)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("loss", [Loss.LABELS, Loss.TOKENS])
def test_every_member_goes_where_it_would_go_alone(architecture: str, loss: Loss) -> None:
    backbone = tiny_backbone(architecture)
    config = replace(CONFIG, loss=loss, max_steps=4, eval_every=2)
    together = curves(backbone, plan(config))
    assert len(together) == 8
    for number in (0, 3, 5, 6):
        member = SEARCH.members(config)[number]
        alone = curves(backbone, plan(member, Search()))[0]
        assert [step for step, _ in alone] == [step for step, _ in together[number]]
        assert [value for _, value in together[number]] == pytest.approx([value for _, value in alone], abs=1e-3)


def curves(backbone: Backbone, asked: TuningPlan) -> dict[int, list[tuple[int, float]]]:
    """Cross-entropy on validation by member: accuracies of few examples would hide small differences."""
    found: dict[int, list[tuple[int, float]]] = {}
    run = TuningRun(backbone, asked)
    while not run.is_done:
        run.advance()
        if run.can_save and run.step % 2 == 0:
            for member in run.population.members:
                score = member.best.score if member.best else None
                found.setdefault(member.number, []).append((run.step, score.rank[-1] if score else math.nan))
    return found


@pytest.mark.parametrize("optimizer", OptimizerKind)
@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_run_continues_from_its_state_bit_for_bit(optimizer: OptimizerKind, labels: tuple[str, ...]) -> None:
    backbone = tiny_backbone()
    asked = plan(replace(CONFIG, optimizer=optimizer), replace(SEARCH, num_cuts=2), labels)
    whole: list[TuneEvent] = []
    uninterrupted = tune_task(backbone, asked, on_event=whole.append)
    seen: list[TuneEvent] = []
    state, run = None, TuningRun(backbone, asked, on_event=seen.append)
    chance = random.Random(1)
    while not run.is_done:
        for _ in range(chance.randint(20, 80)):
            if run.is_done:
                break
            run.advance()
            if run.can_save:
                state = RunState.from_bytes(run.state().to_bytes())
        if not run.is_done:  # killed here, wherever it was
            seen[:] = [event for event in seen if getattr(event, "step", 0) <= (state.record["step"] if state else -1)]
            run = TuningRun(backbone, asked, state=state, on_event=seen.append)
    assert run.result.prompt.digest == uninterrupted.prompt.digest
    assert run.result.history == uninterrupted.history
    assert losses(seen) == losses(whole)


def losses(events: list[TuneEvent]) -> list[tuple[int, float]]:
    return [(event.step, event.loss) for event in events if isinstance(event, StepDone)]


def test_the_state_of_another_plan_is_refused() -> None:
    backbone = tiny_backbone()
    run = TuningRun(backbone, plan())
    while not run.can_save:
        run.advance()
    with pytest.raises(InvalidInput, match="another tuning run"):
        TuningRun(backbone, plan(replace(CONFIG, weight_decay=0.1)), state=run.state())
    with pytest.raises(CorruptPrompt):
        RunState.from_bytes(run.state().to_bytes()[:-3])


def test_the_worse_half_goes_at_every_cut_and_the_best_stays() -> None:
    seen: list[TuneEvent] = []
    search = Search(VALUES | {"learning_rate": (1e-6, 0.2)}, num_cuts=3)
    result = tune_task(tiny_backbone(), plan(replace(CONFIG, max_steps=32), search), on_event=seen.append)
    cuts = [event for event in seen if isinstance(event, MembersDropped)]
    assert [(event.step, len(event.members), event.reason) for event in cuts] == [
        (5, 4, "halving"), (10, 2, "halving"), (21, 1, "halving"),
    ]  # fmt: skip
    assert result.config.learning_rate == 0.2
    last = {event.member: event.step for event in result.history}
    assert sorted(last.values()) == [5] * 4 + [10] * 2 + [21] + [32]
    best = max(result.history, key=lambda event: event.value)
    assert result.validation.metrics["accuracy"] == pytest.approx(best.value)


def test_a_member_that_is_not_finite_leaves_and_the_others_continue() -> None:
    seen: list[TuneEvent] = []
    search = Search({"num_virtual_tokens": (3, 8)}, num_cuts=0)
    run = TuningRun(tiny_backbone(), plan(CONFIG, search), on_event=seen.append)
    while not run.can_save:
        run.advance()
    poisoned = run.population.members[1]
    poisoned.scaled.data.fill_(math.nan)
    while not run.is_done:
        run.advance()
    assert [(event.members, event.reason) for event in seen if isinstance(event, MembersDropped)] == [
        ((1,), "not finite")
    ]
    assert run.result.num_steps == 12
    assert all(math.isfinite(event.value) for event in seen if isinstance(event, Evaluated))


def test_memory_that_is_short_halves_the_micro_batch_and_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    expected = tune_task(backbone, plan())
    seen: list[TuneEvent] = []
    monkeypatch.setattr(LabelObjective, "loss_per_row", _short_of_memory(LabelObjective.loss_per_row, max_rows=9))
    result = tune_task(backbone, plan(), on_event=seen.append)
    assert [event.num_rows for event in seen if isinstance(event, MicroBatchLowered)] == [16, 8]
    assert result.num_steps == expected.num_steps
    assert result.prompt.rows is not None
    assert expected.prompt.rows is not None
    torch.testing.assert_close(result.prompt.rows, expected.prompt.rows, atol=1e-3, rtol=1e-3)


def test_memory_for_not_even_one_row_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelObjective, "loss_per_row", _short_of_memory(LabelObjective.loss_per_row, max_rows=0))
    with pytest.raises(OutOfMemory):
        tune_task(tiny_backbone(), plan())


def _short_of_memory(loss_per_row, *, max_rows):  # type: ignore[no-untyped-def]
    def short(self, prefix, chunk):  # type: ignore[no-untyped-def]
        if len(chunk.rows) > max_rows:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return loss_per_row(self, prefix, chunk)

    return short


def test_slices_are_as_small_as_the_time_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: every token takes a millisecond."""
    monkeypatch.setattr(
        Trainer, "_time", lambda _, prefixes, chunk: len(chunk.rows) * max(row.num_tokens for row in chunk.rows) / 1000
    )
    run = TuningRun(tiny_backbone(), plan(), slice_s=0.1)
    while not run.can_save:
        run.advance()
    max_tokens = run.state().record["chunker"]["max_tokens"]
    assert 50 <= max_tokens <= 200
    tokens = [
        len(chunk.rows) * max(row.num_tokens for row in chunk.rows)
        for chunk in run.chunker.chunks(run.rows.train, SEARCH.num_members)
    ]
    assert max(tokens) <= max_tokens
