"""Plots are SVG files that say which method is which, and the same figures give the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.compare.method import Method
from app.compare.plot import plot_methods
from app.compare.trial import summarize
from tests.support.comparison_setting import trial, words_of

pytest.importorskip("matplotlib", reason="matplotlib belongs to the extra `compare`")


def test_methods_are_named_with_their_scores(tmp_path: Path) -> None:
    summaries = summarize([trial(method, seed) for method in Method for seed in range(2)])
    for name in ("a.svg", "b.svg"):
        plot_methods(summaries, tmp_path / name, "a title")
    words = words_of(tmp_path / "a.svg")
    assert all(f"{method.words}, 80.0 %" in words for method in Method)
    assert "trained parameters" in words
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.filterwarnings("error")
def test_a_single_trained_method_is_drawn(tmp_path: Path) -> None:
    """384 parameters alone gave an axis of no width."""
    one = replace(trial(Method.PREFIX_TUNING), num_parameters=384)
    plot_methods(summarize([trial(Method.ZERO_SHOT), one]), tmp_path / "a.svg", "a title")
    assert "prefix tuning, 80.0 %" in words_of(tmp_path / "a.svg")
