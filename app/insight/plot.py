"""A report on virtual tokens as a drawing: a line for each of them, a panel for each thing that is known."""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from app.errors import InvalidInput
from app.insight.report import CachedToken, EmbeddedToken, PromptReport, PromptView
from app.insight.similarity import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel: TypeAlias = tuple[str, Callable[["Axes"], None]]
INK, MUTED, BAND, GRID = "#1f2933", "#7b8794", "#dfe7f0", "#e4e7eb"
BLUE, ORANGE, GREEN, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030"
MAX_LABELED = 64
"""Virtual tokens up to which each line has its name."""
LINE_IN, MIN_BODY_IN, MAX_BODY_IN, PANEL_IN = 0.2, 1.6, 9.0, 2.2
MAX_TOKEN_CHARS = 14
MAX_GROUPS_NAMED = 4


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require_drawing() -> None:
    """Raises InvalidInput: matplotlib is not installed."""
    if not can_draw():
        raise InvalidInput("a plot needs matplotlib: pip install 'softswap[plot]'", param="format")


def draw_report(report: PromptReport) -> str:
    """SVG, complete in itself: letters are outlines, and nothing is fetched.

    Raises InvalidInput: matplotlib is not installed.
    """
    require_drawing()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels, view = _panels(report), report.view
    body_in = min(MAX_BODY_IN, max(MIN_BODY_IN, LINE_IN * len(view.virtual_tokens)))
    widths_in = [PANEL_IN] * len(panels) + [body_in + 0.6]
    figure = Figure(figsize=(1.4 + sum(widths_in), body_in + 2.0), facecolor="white", layout="constrained")
    FigureCanvasSVG(figure)
    *lines, square = figure.subplots(1, len(widths_in), width_ratios=widths_in)
    for axes, (title, draw) in zip(lines, panels, strict=True):
        draw(axes)
        _style(axes, title, len(view.virtual_tokens))
    _name_lines(lines[0], view, body_in)
    _draw_similarity(square, view)
    note = "\n".join(textwrap.wrap(view.note, int(figure.get_figwidth() * 15)))
    figure.suptitle(_headline(report), x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7, color=MUTED, parse_math=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "softswap", "Title": report.model})
    return buffer.getvalue()


def _panels(report: PromptReport) -> list[Panel]:
    """Those with a line for each virtual token, from left to right."""
    tokens = report.view.virtual_tokens
    panels: list[Panel] = [("length", lambda axes: _draw_lengths(axes, report.view))]
    if tokens[0].drift is not None:
        drifts = [token.drift or 0.0 for token in tokens]
        panels.append(("moved by tuning (L2)", lambda axes: _draw_bars(axes, drifts, MUTED)))
    if report.difference is not None:
        distances = [row.distance or 0.0 for row in report.difference.rows]
        panels.append((f"distance to {report.difference.model}", lambda axes: _draw_bars(axes, distances, MUTED)))
    if report.effects is not None:
        losses = [effect.loss for effect in report.effects.without]
        panels.append(("loss without it, change", lambda axes: _draw_changes(axes, losses)))
    return panels


def _draw_lengths(axes: Axes, view: PromptView) -> None:
    if norms := view.vocabulary_norms:
        axes.axvspan(norms[5], norms[95], color=BAND, lw=0, zorder=0)
        axes.axvline(norms[50], color=MUTED, lw=0.8, zorder=1)
        _draw_dots(axes, [token.norm for token in view.virtual_tokens], BLUE)
        axes.set_xlim(left=0)
        axes.set_xlabel("L2; band: 5 to 95 % of the vocabulary", fontsize=7, color=MUTED)
        return
    tokens = [token for token in view.virtual_tokens if isinstance(token, CachedToken)]
    axes.axvline(1.0, color=MUTED, lw=0.8, zorder=1)
    _draw_dots(axes, [token.key_norm for token in tokens], BLUE)
    _draw_dots(axes, [token.value_norm for token in tokens], ORANGE)
    axes.margins(x=0.15)
    axes.set_xlabel("keys blue, values orange; 1: a text's median", fontsize=7, color=MUTED)


def _draw_dots(axes: Axes, values: Sequence[float], color: str) -> None:
    axes.scatter(values, range(len(values)), s=20 if len(values) <= MAX_LABELED else 5, color=color, lw=0, zorder=3)


def _draw_bars(axes: Axes, values: Sequence[float], color: str | list[str]) -> None:
    axes.barh(range(len(values)), values, height=0.62, color=color, lw=0, zorder=2)


def _draw_changes(axes: Axes, values: Sequence[float]) -> None:
    """Red: the answers are worse without it."""
    _draw_bars(axes, values, [RED if value > 0 else GREEN for value in values])
    reach = 1.1 * max(1e-6, *map(abs, values))
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=INK, lw=0.6, zorder=3)
    axes.set_xlabel("right: it is needed", fontsize=7, color=MUTED)


def _draw_similarity(axes: Axes, view: PromptView) -> None:
    """Near-duplicates are dark off the diagonal."""
    values = view.similarity.cpu().numpy()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    _style(axes, "cosine between virtual tokens", len(values))
    axes.grid(visible=False)
    axes.locator_params(axis="x", nbins=10, integer=True)
    axes.figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], fraction=0.05, pad=0.02)


def _style(axes: Axes, title: str, num_lines: int) -> None:
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=5, parse_math=False)
    axes.tick_params(axis="both", labelsize=7, colors=MUTED, length=2, width=0.5)
    axes.grid(axis="x", color=GRID, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=4)
    axes.set_ylim(num_lines - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _name_lines(axes: Axes, view: PromptView, body_in: float) -> None:
    num = len(view.virtual_tokens)
    step = 1 if num <= MAX_LABELED else -(-num // 20)
    places = range(0, num, step)
    axes.set_yticks(places, [_name_line(view, place) for place in places], parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=min(8.0, 45 * body_in * step / num), labelcolor=INK)


def _name_line(view: PromptView, index: int) -> str:
    """The index, preceded for embeddings by the nearest token and its cosine."""
    token = view.virtual_tokens[index]
    if not isinstance(token, EmbeddedToken):
        return str(index)
    near = token.by_cosine[0]
    return f"{_printable(near.token, near.token_id)}  {near.cosine:.2f}   {index:>2}"


def _printable(token: str, token_id: int) -> str:
    """Blanks as middle dots; what the plot's font cannot draw is named by its id."""
    from matplotlib.font_manager import findfont, get_font

    shown = token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    font = get_font(findfont("DejaVu Sans"))
    is_drawn = "\ufffd" not in shown and all(
        unicodedata.category(character)[0] not in "CMZ" and font.get_char_index(ord(character)) for character in shown
    )
    if not shown or not is_drawn:
        return f"#{token_id}"
    return shown if len(shown) <= MAX_TOKEN_CHARS else f"{shown[: MAX_TOKEN_CHARS - 1]}…"


def _headline(report: PromptReport) -> str:
    view = report.view
    num = len(view.virtual_tokens)
    facts = f"{num} virtual token{'s' * (num > 1)}, {view.kind.value}"
    groups = f"clusters: {_name_groups(view.clusters)}  ·  near-duplicates: {_name_groups(view.near_duplicates)}"
    return f"{report.model}  ·  {facts}\n{groups}"


def _name_groups(groups: Groups) -> str:
    named = ["+".join(map(str, group[:8])) + ("+…" if len(group) > 8 else "") for group in groups[:MAX_GROUPS_NAMED]]
    more = len(groups) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "") if named else "none"
