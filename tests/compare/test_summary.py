"""Intervals are what they are called, and a summary says what its trials say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from app.compare.method import Method
from app.compare.trial import Interval, Summary, summarize
from tests.support.comparison_setting import trial


def test_several_seeds_have_students_interval() -> None:
    """Values of a table: t for two degrees of freedom at 97.5 % is 4.3027."""
    interval = Interval.over_seeds([0.7, 0.8, 0.9])
    assert interval.low == pytest.approx(0.8 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert interval.high == 1.0
    assert interval.kind == "t over 3 seeds"


def test_one_seed_has_wilsons_interval_where_the_metric_is_a_share_and_none_elsewhere() -> None:
    share = Summary.of([trial(value=0.5)]).interval
    assert (share.low, share.high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))
    assert "Wilson over 100 examples" in share.kind
    assert Summary.of([trial(metric="rouge_l")]).interval.low is None


def test_a_summary_has_means_of_times_and_the_largest_peak() -> None:
    found = Summary.of([trial(seed=seed, value=0.7 + seed / 10) for seed in range(3)])
    assert (found.value, found.tuning_s, found.peak_memory_bytes) == (pytest.approx(0.8), 3.0, 12)
    assert found.seeds == (0, 1, 2)
    assert found.latency_s is None
    assert json.loads(json.dumps(asdict(found)))["interval"]["kind"] == "t over 3 seeds"


def test_methods_stand_in_their_order_and_untold_memory_stays_untold() -> None:
    trials = [trial(Method.FULL), trial(Method.ZERO_SHOT), replace(trial(Method.LORA), peak_memory_bytes=None)]
    found = summarize(trials)
    assert [summary.method for summary in found] == [Method.ZERO_SHOT, Method.LORA, Method.FULL]
    assert found[1].peak_memory_bytes is None
