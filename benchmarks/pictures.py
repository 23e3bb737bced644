"""Pictures of kept results, as SVG that reads well in light and in dark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Parts = Sequence[Mapping[str, Any]]
"""One part of several runs, as `Part.as_json` gave it, the newest first."""

PICTURES = {"peers": "softswap", "decisions": "softswap", "prompt-length": "no virtual tokens"}
"""Parts that have a picture, and the contender whose speed is 1 there."""
INK, PAPER, GRID = "#1f2933", "#ffffff", "#d5dae1"
LIGHT_TO_DARK = {INK: "#e4e7eb", PAPER: "#0d1117", GRID: "#39424e"}
OURS, THEIRS = "#0072b2", "#8a94a0"
"""Colors that color-blind readers can tell apart (Okabe and Ito 2008), on light and dark alike."""
RC = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "softswap",  # the same figures give the same file
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "grid.color": GRID,
}  # fmt: skip


def draw_speeds(dtype_to_parts: Mapping[str, Parts], one: str) -> str:
    """Bars: speed of each contender, that of `one` in the same run being 1; runs may be of different machines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = {dtype: _relative_speeds(parts, one) for dtype, parts in dtype_to_parts.items()}
    height_in = 0.9 + 0.28 * max(map(len, panels.values()))
    with rc_context(RC):
        figure = Figure(figsize=(4.4 * len(panels), height_in), layout="constrained")
        for index, (dtype, bars) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), index + 1)
            _draw_bars(axes, bars, one)
            axes.set_title(dtype, loc="left", fontsize=9, fontweight="bold")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_light_and_dark(buffer.getvalue())


def _relative_speeds(parts: Parts, one: str) -> dict[str, float]:
    """Contender to its speed, the fastest first; of a contender's runs the newest counts."""
    bars: dict[str, float] = {}
    for part in parts:
        base = part["contenders"][one]["median_tokens_per_s"]
        for name, each in part["contenders"].items():
            bars.setdefault(name, each["median_tokens_per_s"] / base)
    return dict(sorted(bars.items(), key=lambda bar: bar[1], reverse=True))


def _draw_bars(axes: Axes, bars: Mapping[str, float], one: str) -> None:
    colors = [OURS if name.startswith(one) else THEIRS for name in bars]
    axes.barh([*bars], [*bars.values()], color=colors, height=0.62)
    for place, share in enumerate(bars.values()):
        axes.text(share + 0.02, place, f"{share:.2f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.15 * max(bars.values()))
    axes.set_xlabel(f"tokens/s, {one} = 1")
    axes.grid(visible=True, axis="x", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


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
