"""Pictures of kept results, as SVG that reads well in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Parts = Sequence[Mapping[str, Any]]
"""One part of several runs, as `Part.as_json` gave it, the newest first."""

INK, PAPER, GRID = "#1f2933", "#ffffff", "#d5dae1"
LIGHT_TO_DARK = {INK: "#e4e7eb", PAPER: "#0d1117", GRID: "#39424e"}
OURS, THEIRS = "#0072b2", "#8a94a0"
LINES = (("#0072b2", "o"), ("#e69f00", "s"), ("#d55e00", "^"))
"""Colors that color-blind readers can tell apart (Okabe and Ito 2008), on light and dark alike."""
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "softswap",  # the same figures give the same file
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "grid.color": GRID,
}  # fmt: skip
PANEL_IN = 4.4
NO_PROMPT = "no virtual tokens"
"""The contender of `prompt-length` that the others are measured against."""


def draw_speeds(dtype_to_parts: Mapping[str, Parts]) -> str:
    """Bars: speed of each contender, softswap's in the same run being 1; runs may be of different machines."""
    panels = [(dtype, _relative_speeds(parts)) for dtype, parts in dtype_to_parts.items()]
    height_in = 0.9 + 0.28 * max(len(bars) for _, bars in panels)
    drawers = [partial(_draw_bars, dtype=dtype, bars=bars) for dtype, bars in panels]
    return _svg(drawers, height_in)


def draw_prompt_length(dtype_to_parts: Mapping[str, Parts]) -> str:
    """Lines: time of the same requests against the number of virtual tokens, none being 1."""

    def draw(axes: Axes) -> None:
        for (dtype, parts), (color, marker) in zip(dtype_to_parts.items(), LINES, strict=False):
            shared, computed = _costs(parts[0]["contenders"])
            axes.plot(*zip(*shared, strict=True), color=color, marker=marker, label=f"{dtype}, shared by the task")
            axes.plot(*computed, color=color, marker="x", ls="", label=f"{dtype}, computed for every request")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("virtual tokens")
        axes.set_ylabel("time, without a prompt = 1")
        axes.legend(frameon=False, loc="lower right")

    return _svg([draw], 3.0, panel_in=6.4)


PICTURES: Mapping[str, Callable[[Mapping[str, Parts]], str]] = {
    "peers": draw_speeds,
    "decisions": draw_speeds,
    "prompt-length": draw_prompt_length,
}


def _relative_speeds(parts: Parts) -> list[tuple[str, float]]:
    """(contender, share of softswap's tokens/s), the fastest first; of a contender's runs the newest counts."""
    bars: dict[str, float] = {}
    for part in parts:
        ours = part["contenders"]["softswap"]["median_tokens_per_s"]
        for name, each in part["contenders"].items():
            bars.setdefault(name, each["median_tokens_per_s"] / ours)
    return sorted(bars.items(), key=lambda bar: bar[1], reverse=True)


def _draw_bars(axes: Axes, dtype: str, bars: Sequence[tuple[str, float]]) -> None:
    names, shares = zip(*bars, strict=True)
    colors = [OURS if name.startswith("softswap") else THEIRS for name in names]
    axes.barh(names, shares, color=colors, height=0.62)
    for place, share in enumerate(shares):
        axes.text(share + 0.02, place, f"{share:.2f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(shares))
    axes.set_xlabel("tokens/s, softswap = 1")
    axes.set_title(dtype, loc="left", fontsize=9, fontweight="bold")


def _costs(contenders: Mapping[str, Any]) -> tuple[list[tuple[int, float]], tuple[int, float]]:
    """((virtual tokens, relative time) with shared prefixes, the same where each request computes its own)."""
    seconds = {name: sorted(each["wall_s"])[len(each["wall_s"]) // 2] for name, each in contenders.items()}
    base = seconds.pop(NO_PROMPT)
    shared, computed = [(0, 1.0)], (0, 1.0)
    for name, wall_s in seconds.items():
        match = re.match(r"\d+", name)
        assert match
        point = int(match[0]), wall_s / base
        if "computed" in name:
            computed = point
        else:
            shared.append(point)
    return sorted(shared), computed


def _svg(drawers: Sequence[Callable[[Axes], None]], height_in: float, *, panel_in: float = PANEL_IN) -> str:
    """All panels in one row."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(RC):
        figure = Figure(figsize=(panel_in * len(drawers), height_in), layout="constrained")
        for index, draw in enumerate(drawers):
            axes = figure.add_subplot(1, len(drawers), index + 1)
            axes.set_axisbelow(True)
            draw(axes)
            axes.grid(visible=True, axis="x" if axes.yaxis_inverted() else "both", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_light_and_dark(buffer.getvalue())


def _for_light_and_dark(svg: str) -> str:
    """The same picture with rules for a viewer who prefers dark; others, and old programs, see the light one."""
    rules = "".join(
        f'[style*="{paint}: {light}"] {{ {paint}: {dark} !important }}\n'
        for light, dark in LIGHT_TO_DARK.items()
        for paint in ("fill", "stroke")
    )
    style = f"<style>\n@media (prefers-color-scheme: dark) {{\n{rules}}}\n</style>\n"
    head, tag, rest = svg.partition("<defs>")
    return head + style + tag + rest
