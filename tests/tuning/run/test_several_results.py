"""A run can keep several of its prompts: none of them is dropped, and the best ones are its results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.run import tune_task
from app.tuning.search import Search, keep_better_half
from tests.support.models import tiny_backbone

EXAMPLES = tuple(Example(f"{'good' if n % 2 else 'bad'} {n}", "yes" if n % 2 else "no") for n in range(60))
CONFIG = TuneConfig(num_virtual_tokens=2, max_steps=16, batch_size=8, eval_every=4, max_target_tokens=8)
SEARCH = Search({"learning_rate": (0.1,), "seed": (0, 1, 2, 3, 4)})


def _plan(num_kept: int) -> TuningPlan:
    search = replace(SEARCH, num_kept=num_kept)
    return TuningPlan.make(Dataset("likes", EXAMPLES), None, CONFIG, search)


def test_the_best_members_are_the_results_and_all_of_them_were_trained_to_the_end() -> None:
    result = tune_task(tiny_backbone(), _plan(3))
    kept = [result, *result.others]
    ends = {number: max(step for step, _ in points) for number, points in result.curves.items()}
    assert sorted(ends.values()) == [2, 2, 16, 16, 16]
    best = {number: max(value for _, value in points) for number, points in result.curves.items()}
    values = [best[each.member] for each in kept]
    assert len({each.member for each in kept}) == 3
    assert values == sorted(best.values(), reverse=True)[:3]
    for each in kept:
        measured = evaluate(
            tiny_backbone(), ServedPrompt(each.prompt, each.plan.template, each.plan.labels), each.plan.validation
        )
        assert each.validation.metrics["accuracy"] == measured.metrics["accuracy"]
        assert each.config.seed == each.member


def test_the_first_result_is_the_one_a_run_that_keeps_one_has_when_nothing_is_dropped() -> None:
    one, several = (
        tune_task(tiny_backbone(), replace(plan, search=replace(plan.search, num_cuts=0)))
        for plan in (_plan(1), _plan(4))
    )
    assert one.others == ()
    assert (one.member, one.best_step) == (several.member, several.best_step)
    assert one.prompt.rows is not None
    assert several.prompt.rows is not None
    torch.testing.assert_close(one.prompt.rows, several.prompt.rows, rtol=0, atol=0)


def test_more_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(InvalidInput) as refused:
        replace(SEARCH, num_kept=6)
    assert refused.value.param == "publish"
    assert keep_better_half([(0.1,), (0.5,), (0.4,), (0.5,)], 3) == [1, 2, 3]
