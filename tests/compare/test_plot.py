"""Plots are SVG files that say which method is which, and the same figures give the same file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from app.compare.method import Method
from app.compare.plot import Line, plot_methods, plot_sizes
from app.compare.summary import Summary, summarise
from tests.compare.test_summary import trial

pytest.importorskip("matplotlib", reason="matplotlib belongs to the extra `compare`")


def words_of(path: Path) -> str:
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return " ".join(text for element in root.iter() if (text := (element.text or "").strip()))


def test_methods_are_named_with_their_scores(tmp_path: Path) -> None:
    summaries = summarise([trial(method, seed) for method in Method for seed in range(2)])
    for name in ("a.svg", "b.svg"):
        plot_methods(summaries, tmp_path / name, "a title")
    words = words_of(tmp_path / "a.svg")
    assert all(f"{method.words}, 80.0 %" in words for method in Method)
    assert "trained parameters" in words
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


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
