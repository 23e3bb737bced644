"""Plots are SVG files that say which method is which, and the same figures give the same file."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.compare.method import Method
from app.compare.plot import plot_methods
from app.compare.summary import summarize
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
