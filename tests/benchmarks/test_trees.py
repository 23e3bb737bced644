"""Two trees are compared round by round, and an interval is as wide as the rounds differ."""

from __future__ import annotations

import math

import pytest

from benchmarks.part import Ratio
from benchmarks.parts.trees import ratio_with_interval


def test_rounds_that_agree_have_a_narrow_interval_and_a_slow_round_of_both_changes_nothing():
    ratio, low, high = ratio_with_interval([1.1, 11.0, 1.1], [1.0, 10.0, 1.0])
    assert ratio == pytest.approx(1.1)
    assert low == pytest.approx(high)


def test_the_interval_is_students_of_the_logarithms():
    ratio, low, high = ratio_with_interval([math.e, 1.0], [1.0, 1.0])
    reach = 12.7062 * math.sqrt(0.5) / math.sqrt(2)
    assert (math.log(ratio), math.log(low), math.log(high)) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach), rel=1e-4)


def test_one_round_proves_nothing():
    assert ratio_with_interval([2.0], [1.0]) == (pytest.approx(2.0), 0.0, math.inf)


def test_a_tree_is_slower_only_when_the_whole_interval_says_so():
    assert Ratio(1.05, low=0.98, high=1.12, at_most=1.0).is_reached
    assert not Ratio(1.05, low=1.01, high=1.09, at_most=1.0).is_reached
