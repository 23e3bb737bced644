"""A configuration is checked once and plans a whole run."""

from __future__ import annotations

import math

import pytest

from app.errors import InvalidInput
from app.tuning.config import Init, Schedule, TuneConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_virtual_tokens", 0),
        ("num_virtual_tokens", 1025),
        ("learning_rate", math.nan),
        ("learning_rate", -1.0),
        ("batch_size", -1),
        ("micro_batch_size", 0),
        ("num_epochs", -1.0),
        ("warmup_share", 1.5),
        ("seed", -1),
        ("init_text", "belongs to init text"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        TuneConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


def test_init_text_needs_a_text() -> None:
    with pytest.raises(InvalidInput, match="init_text"):
        TuneConfig(init=Init.TEXT)


def test_epochs_become_steps_unless_steps_are_given() -> None:
    assert TuneConfig(batch_size=32, num_epochs=2).num_steps(100) == 7
    assert TuneConfig(batch_size=32, num_epochs=0.01).num_steps(100) == 1
    assert TuneConfig(max_steps=5).num_steps(100) == 5


def test_without_either_few_examples_get_fifty_updates_and_many_three_passes() -> None:
    assert TuneConfig(batch_size=32).num_steps(100) == 50
    assert TuneConfig(batch_size=32).num_steps(3200) == 300


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    config = TuneConfig(learning_rate=1.0, warmup_share=0.1)
    rates = [config.learning_rate_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_constant_schedule_stays() -> None:
    config = TuneConfig(learning_rate=1.0, warmup_share=0.0, schedule=Schedule.CONSTANT)
    assert {config.learning_rate_at(step, 9) for step in range(9)} == {1.0}
