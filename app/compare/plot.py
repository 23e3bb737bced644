"""Plots of scores with their intervals, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.compare.method import Method
from app.compare.summary import Summary

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
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008), and markers for those who print in grey."""
RC = {"svg.fonttype": "none", "svg.hashsalt": "softswap", "font.size": 10}
"""Text stays text, and the same figures give the same file."""


@dataclass(frozen=True)
class Line:
    """One method over several backbones.

    Attributes:
        points: (parameters of the backbone, what the method scores there), ascending.
    """

    method: Method
    points: Sequence[tuple[int, Summary]]


def plot_methods(summaries: Sequence[Summary], path: Path, title: str) -> None:
    """Score against trained parameters; written prompts train none, so they are lines across the plot."""

    def draw(axes: Axes) -> None:
        for summary in summaries:
            color, marker = METHOD_TO_STYLE[summary.method]
            label = f"{summary.method.words}, {_percent(summary.value)} %"
            if summary.num_parameters:
                x, y = [summary.num_parameters], [100 * summary.value]
                axes.errorbar(x, y, yerr=_reach([summary]), fmt=marker, color=color, capsize=4, label=label)
            else:
                axes.axhline(100 * summary.value, color=color, linestyle="--", linewidth=1, label=label)
        axes.set_xlabel("trained parameters")

    _save(path, title, summaries[0].metric, draw_into=draw)


def plot_sizes(lines: Iterable[Line], path: Path, title: str) -> None:
    """Score against the backbone's parameters, one line for each method (compare Lester et al. 2021, figure 1)."""
    drawn = list(lines)

    def draw(axes: Axes) -> None:
        for line in drawn:
            color, marker = METHOD_TO_STYLE[line.method]
            summaries = [summary for _, summary in line.points]
            axes.errorbar(
                [size for size, _ in line.points],
                [100 * summary.value for summary in summaries],
                yerr=_reach(summaries),
                color=color, marker=marker, markersize=5, capsize=3, linewidth=1.3, label=line.method.words,
            )  # fmt: skip
        sizes = sorted({size for line in drawn for size, _ in line.points})
        axes.set_xticks(sizes, [f"{size / 1e6:.2g}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("parameters of the backbone, millions")

    _save(path, title, drawn[0].points[0][1].metric, draw_into=draw)


def _save(path: Path, title: str, metric: str, *, draw_into: Callable[[Axes], None]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(RC):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        draw_into(axes)
        axes.set_ylabel(f"{METRIC_TO_NAME[metric]} on test, % [95 %]")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _reach(summaries: Sequence[Summary]) -> list[list[float]]:
    """Below and above each value, in percent; 0 where there is no interval."""
    below, above = [], []
    for summary in summaries:
        low, high = summary.interval.low, summary.interval.high
        below.append(0.0 if low is None else 100 * (summary.value - low))
        above.append(0.0 if high is None else 100 * (high - summary.value))
    return [below, above]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
