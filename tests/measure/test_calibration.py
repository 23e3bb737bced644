"""Calibration of answers whose reliability is known, and the fitted temperature next to the one that was put in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.measure.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, NUM_BINS, Calibration, fit_temperature


def drawn(temperature: float, num: int = 20_000, num_labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and targets drawn from softmax(scores / temperature)."""
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2.0, size=(num, num_labels)) - 5
    noise = rng.gumbel(size=scores.shape)
    return scores, (scores / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_targets_is_found(temperature: float) -> None:
    scores, targets = drawn(temperature)
    assert fit_temperature(scores, targets) == pytest.approx(temperature, rel=0.05)


def test_a_fitted_temperature_corrects_the_calibration_error() -> None:
    scores, targets = drawn(3.0)
    raw = Calibration.measure(scores, targets)
    corrected = Calibration.measure(scores, targets, fit_temperature(scores, targets))
    assert raw.error > 0.2
    assert corrected.error < 0.02
    assert corrected.nll < raw.nll


def test_the_error_is_the_mean_distance_over_the_bins() -> None:
    """Two examples at 0.8, one right; two at 0.6, both right: (2 * 0.3 + 2 * 0.4) / 4."""
    log = math.log
    scores = [[log(0.8), log(0.2)]] * 2 + [[log(0.6), log(0.4)]] * 2
    found = Calibration.measure(scores, [0, 1, 0, 0])
    assert [each.num_examples for each in found.bins] == [2, 2]
    assert [each.accuracy for each in found.bins] == [1.0, 0.5]
    assert found.error == pytest.approx(0.35)
    assert found.nll == pytest.approx(-(log(0.8) + log(0.2) + 2 * log(0.6)) / 4)


def test_tensors_and_lists_are_scores_too() -> None:
    scores, targets = drawn(2.0, num=50)
    expected = fit_temperature(scores, targets)
    assert fit_temperature(torch.tensor(scores), torch.tensor(targets)) == pytest.approx(expected)
    assert fit_temperature(scores.tolist(), targets.tolist()) == pytest.approx(expected)


def test_a_fit_stays_within_its_bounds_where_every_answer_is_right_or_wrong() -> None:
    many = 100_000
    scores = [[0.0, -1.0], [0.0, -2.0]] * many
    assert fit_temperature(scores, [0, 0] * many) == pytest.approx(MIN_TEMPERATURE, rel=0.05)
    assert fit_temperature(scores, [1, 1] * many) == pytest.approx(MAX_TEMPERATURE, rel=0.05)


@pytest.mark.parametrize("right", [0, 1])
def test_ten_examples_say_little_about_the_temperature(right: int) -> None:
    """All right or all wrong: without a prior the fit would end at a bound, and answers at a probability of 1."""
    scores = [[0.0, -2.0]] * 10
    found = fit_temperature(scores, [right] * 10)
    assert 0.5 < found < 5.0
    assert Calibration.measure(scores, [right] * 10, found).bins[0].confidence < 0.99


def test_a_label_without_any_probability_is_no_nan() -> None:
    scores = [[0.0, -math.inf], [0.0, -math.inf]]
    assert math.isfinite(Calibration.measure(scores, [0, 1]).nll)
    assert MIN_TEMPERATURE <= fit_temperature(scores, [0, 1]) <= MAX_TEMPERATURE


@given(st.lists(st.lists(st.floats(-50, 0), min_size=3, max_size=3), min_size=1, max_size=30), st.data())
def test_every_example_is_in_one_bin_that_holds_its_confidence(scores: list[list[float]], data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores)))
    found = Calibration.measure(scores, targets, data.draw(st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE)))
    assert sum(each.num_examples for each in found.bins) == len(scores)
    assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in found.bins)
    assert all(each.high - each.low == pytest.approx(1 / NUM_BINS) for each in found.bins)
    assert 0 <= found.error <= 1
