"""Plots of scores with their intervals, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.compare.method import Method
from app.compare.trial import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_TO_NAME = {"accuracy": "accuracy", "entity_f1": "entity F1", "rouge_l": "ROUGE-L"}
METHOD_TO_STYLE = {
    Method.ZERO_SHOT: ("#8c8c8c", "v"),
    Method.FEW_SHOT: ("#595959", "^"),
    Method.PROMPT_TUNING: ("#0072b2", "o"),
    Method.PREFIX_TUNING: ("#56b4e9", "D"),
    Method.LORA: ("#e69f00", "s"),
    Method.FULL: ("#d55e00", "P"),
}
"""Colors that color-blind readers can tell apart (Okabe and Ito 2008), and markers for those who print in gray."""
RC = {"svg.fonttype": "none", "svg.hashsalt": "softswap", "font.size": 10}
"""Text stays text, and the same figures give the same file."""


def plot_methods(summaries: Sequence[Summary], path: Path, title: str) -> None:
    """Score against trained parameters; written prompts train none, so they are lines across the plot."""

    def draw(axes: Axes) -> None:
        for summary in summaries:
            color, marker = METHOD_TO_STYLE[summary.method]
            label = f"{summary.method.words}, {100 * summary.value:.1f} %"
            if summary.num_parameters:
                x, y = [summary.num_parameters], [100 * summary.value]
                axes.errorbar(x, y, yerr=interval_bars([summary]), fmt=marker, color=color, capsize=4, label=label)
            else:
                axes.axhline(100 * summary.value, color=color, linestyle="--", linewidth=1, label=label)
        if sizes := [summary.num_parameters for summary in summaries if summary.num_parameters]:
            axes.set_xlim(min(sizes) / 2, max(sizes) * 2)  # matplotlib's own choice is empty for some single sizes
        axes.set_xlabel("trained parameters")

    save_plot(path, title, summaries[0].metric, draw)


def save_plot(path: Path, title: str, metric: str, draw: Callable[[Axes], None]) -> None:
    """Args: draw: fills axes whose y is the metric in percent and whose x is logarithmic."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(RC):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        draw(axes)
        axes.set_ylabel(f"{METRIC_TO_NAME[metric]} on test, % [95 %]")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None})


def interval_bars(summaries: Sequence[Summary]) -> list[list[float]]:
    """Lengths below and above each value, in percent; 0 if there is no interval."""
    below, above = [], []
    for summary in summaries:
        low, high = summary.interval.low, summary.interval.high
        below.append(0.0 if low is None else 100 * (summary.value - low))
        above.append(0.0 if high is None else 100 * (high - summary.value))
    return [below, above]
