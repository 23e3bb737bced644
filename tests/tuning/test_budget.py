"""What is planned fits into the budget, whatever the machine takes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tuning.budget import (
    FIRST_SHARE,
    MIN_VALIDATION_ROWS,
    BudgetPlan,
    Costs,
    Limits,
    in_words,
    mean_alive,
    parse_duration,
    plan_within,
    process_began_s,
)

LIMITS = Limits(num_train=2000, num_validation=500, num_final=1000, num_members=16)
SLOW = Costs(learn_s=0.19, judge_s=0.06)
"""A model of 135 million parameters on two cores."""


def seconds_of(plan: BudgetPlan, costs: Costs, min_members: int = 1) -> float:
    """What the plan takes, by its costs."""
    alive = mean_alive(plan.num_members, plan.cuts, min_members)
    updates = plan.num_steps * plan.batch_size * costs.learn_s
    measurements = plan.num_measurements * plan.num_validation * costs.judge_s
    return alive * (updates + measurements) + plan.reserve_s


@given(
    budget_s=st.floats(60, 36_000),
    learn_s=st.floats(1e-4, 0.5),
    share=st.floats(0.1, 0.6),
    num_train=st.integers(1, 100_000),
    num_validation=st.integers(1, 5000),
    num_members=st.integers(1, 64),
    min_members=st.integers(1, 4),
)
def test_a_plan_fits_into_what_is_left(
    budget_s: float,
    learn_s: float,
    share: float,
    num_train: int,
    num_validation: int,
    num_members: int,
    min_members: int,
) -> None:
    costs = Costs(learn_s, share * learn_s)
    limits = Limits(num_train, min(500, num_validation), num_validation, num_members, min(min_members, num_members))
    plan = plan_within(budget_s, 0.9 * budget_s, costs, limits)
    assert limits.min_members <= plan.num_members <= num_members
    assert plan.num_validation <= limits.num_validation
    assert plan.num_final <= limits.num_final
    assert 1 <= plan.num_measurements <= plan.num_steps
    is_possible = plan.num_steps > 1 and plan.num_validation > MIN_VALIDATION_ROWS
    if is_possible:
        assert seconds_of(plan, costs, limits.min_members) <= 0.9 * budget_s * 1.001
        assert plan.num_members * plan.num_validation * costs.judge_s <= FIRST_SHARE * budget_s


def test_more_time_tries_more_prompts_and_less_time_smaller_batches() -> None:
    plans = [plan_within(budget_s, 0.95 * budget_s, SLOW, LIMITS) for budget_s in (180, 600, 1200, 7200)]
    assert [plan.num_members for plan in plans] == sorted(plan.num_members for plan in plans)
    assert plans[0].num_members == 1
    assert plans[1].num_members >= 2
    assert plans[0].batch_size < plans[-1].batch_size
    assert plans[0].num_steps >= 40


def test_few_examples_are_done_before_the_budget_is() -> None:
    plan = plan_within(600, 590, Costs(0.001, 0.0005), replace(LIMITS, num_train=200, num_validation=20, num_final=20))
    assert seconds_of(plan, Costs(0.001, 0.0005)) < 120


def test_what_is_asked_for_is_respected() -> None:
    asked = replace(LIMITS, batch_size=4, max_steps=7, min_members=3)
    plan = plan_within(600, 590, SLOW, asked)
    assert (plan.batch_size, plan.num_steps) == (4, 7)
    assert plan.num_members >= 3
    assert plan_within(600, 590, SLOW, replace(LIMITS, num_members=1)).num_cuts == 0


def test_even_no_time_leaves_one_update() -> None:
    plan = plan_within(2, 0.5, Costs(10.0, 3.0), LIMITS)
    assert (plan.num_members, plan.num_steps, plan.num_validation) == (1, 1, MIN_VALIDATION_ROWS)


def test_prompts_alive_are_counted_between_the_cuts() -> None:
    assert mean_alive(8, (0.125, 0.25, 0.5)) == pytest.approx(1 + 0.5 + 0.5 + 0.5)
    assert mean_alive(5, (), 1) == 5
    assert mean_alive(3, (0.5,), 3) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20m", 1200), ("90", 90), ("90s", 90), ("1h30m", 5400), (" 2.5M ", 150), ("1h", 3600), ("1m30", 90)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "20 min", "-5m", "5m1h", "nan", "1d", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="20m"):
        parse_duration(text)


def test_durations_are_told_as_they_are_asked_for() -> None:
    assert [in_words(seconds) for seconds in (40, 60, 90, 719.6, 3900)] == ["40s", "1m", "1m30s", "12m", "1h05m"]


def test_a_process_knows_when_it_began() -> None:
    assert time.monotonic() - 3600 < process_began_s() < time.monotonic() - 0.1


@pytest.mark.parametrize("num_kept", [1, 3, 8])
@pytest.mark.parametrize("answer_s", [0.0, 2.0])
def test_what_comes_at_the_end_has_its_time(num_kept: int, answer_s: float) -> None:
    """Each result is measured twice, the written prompt and the live version once."""
    costs = replace(SLOW, answer_s=answer_s)
    plan = plan_within(1200, 1100, costs, replace(LIMITS, min_members=num_kept))
    assert plan.reserve_s >= (2 * num_kept + 2) * plan.num_final * costs.final_s
    is_least = plan.num_final == MIN_VALIDATION_ROWS
    assert is_least or plan.reserve_s <= 0.15 * 1200


def test_passes_over_the_examples_are_counted_in_updates_of_the_chosen_size() -> None:
    plan = plan_within(1200, 1100, Costs(0.001, 0.0005), replace(LIMITS, num_epochs=3))
    assert plan.num_steps * plan.batch_size == pytest.approx(3 * LIMITS.num_train, rel=0.02)
