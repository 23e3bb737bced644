"""The picture of the size study: what each method scores as the backbone grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.compare.method import Method
from app.compare.plot import METHOD_TO_STYLE, interval_bars, save_plot
from app.compare.trial import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Line:
    """One method over several backbones.

    Attributes:
        points: (parameters of the backbone, what the method scores there), ascending.
    """

    method: Method
    points: Sequence[tuple[int, Summary]]


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
                yerr=interval_bars(summaries),
                color=color, marker=marker, markersize=5, capsize=3, linewidth=1.3, label=line.method.words,
            )  # fmt: skip
        sizes = sorted({size for line in drawn for size, _ in line.points})
        axes.set_xticks(sizes, [f"{size / 1e6:.2g}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("parameters of the backbone, millions")

    save_plot(path, title, drawn[0].points[0][1].metric, draw)
