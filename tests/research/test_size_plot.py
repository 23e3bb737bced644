"""The picture of the size study says which line is which method."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.compare.method import Method
from app.compare.trial import Summary
from research.size_study.plot import Line, plot_sizes
from tests.support.comparison_setting import trial, words_of

pytest.importorskip("matplotlib", reason="matplotlib belongs to the extra `compare`")


def test_sizes_are_a_line_for_each_method(tmp_path: Path) -> None:
    lines = [
        Line(method, [(10**size, Summary.of([trial(method, value=size / 10)])) for size in (5, 6, 7)])
        for method in (Method.PROMPT_TUNING, Method.FULL)
    ]
    plot_sizes(lines, tmp_path / "a.svg", "a title")
    words = words_of(tmp_path / "a.svg")
    assert "prompt tuning" in words
    assert "parameters of the backbone" in words
    assert "LoRA" not in words
