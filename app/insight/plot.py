"""A report on virtual tokens as a drawing: a line for each of them, a column for each thing that is known."""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from app.errors import InvalidInput
from app.insight.groups import Groups
from app.insight.report import PromptReport
from app.insight.view import CachedToken, EmbeddedToken, PromptView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, BAND, GRID = "#1f2933", "#7b8794", "#dfe7f0", "#e4e7eb"
BLUE, ORANGE, GREEN, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030"
MAX_LABELLED = 64
"""Virtual tokens up to which each line has its name."""
LINE_IN, MIN_BODY_IN, MAX_BODY_IN = 0.2, 1.6, 9.0
HEAD_IN, FOOT_IN, AXIS_IN, LAYERS_IN = 0.95, 0.6, 0.5, 1.9
COLUMN_IN, GAP_IN, MARGIN_IN, BAR_IN = 1.9, 0.3, 0.3, 0.75
MAX_TOKEN_CHARS = 14
MAX_GROUPS_NAMED = 4


@dataclass(frozen=True)
class _Column:
    title: str
    draw: Callable[[Axes], None]
    width_in: float = COLUMN_IN


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_report(report: PromptReport) -> str:
    """SVG, complete in itself: letters are outlines, and nothing is fetched.

    Raises InvalidInput: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput("a plot needs matplotlib: pip install 'softswap[plot]'", param="format") from error
    figure = Figure(facecolor="white")
    FigureCanvasSVG(figure)
    _Drawing(figure, report).draw()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "softswap", "Title": report.model})
    return buffer.getvalue()


class _Drawing:
    """Places columns in inches from the top left, since lines must keep their height however many there are."""

    def __init__(self, figure: Figure, report: PromptReport) -> None:
        self._figure = figure
        self._report = report
        self._view = report.view
        num = len(self._view.virtual_tokens)
        self._body_in = min(MAX_BODY_IN, max(MIN_BODY_IN, LINE_IN * num))
        self._line_pt = 72 * self._body_in / num
        self._label_in = 0.3 if self._view.layers else 1.6
        self._layers_in = LAYERS_IN + AXIS_IN if self._view.layers else 0.0

    def draw(self) -> None:
        columns = [*self._columns(), _Column("cosine between virtual tokens", self._draw_similarity, self._body_in)]
        right_in = BAR_IN + MARGIN_IN
        width_in = MARGIN_IN + self._label_in + sum(column.width_in + GAP_IN for column in columns) - GAP_IN + right_in
        height_in = HEAD_IN + self._body_in + AXIS_IN + self._layers_in + FOOT_IN
        self._figure.set_size_inches(width_in, height_in)
        left_in = MARGIN_IN + self._label_in
        for i, column in enumerate(columns):
            axes = self._add_axes(left_in, HEAD_IN, column.width_in, self._body_in)
            self._prepare_lines(axes, column.title, is_named=i == 0)
            column.draw(axes)
            left_in += column.width_in + GAP_IN
        if self._view.layers:
            self._draw_layers(width_in)
        self._write_head_and_foot(width_in, height_in)

    def _columns(self) -> list[_Column]:
        columns = [_Column(*self._lengths())]
        tokens, report = self._view.virtual_tokens, self._report
        if tokens[0].drift is not None:
            drifts = [token.drift or 0.0 for token in tokens]
            columns.append(_Column("moved by tuning (L2)", lambda axes: self._bars(axes, drifts, MUTED)))
        if report.difference is not None:
            distances = [row.distance or 0.0 for row in report.difference.rows]
            title = f"distance to {report.compared}"
            columns.append(_Column(title, lambda axes: self._bars(axes, distances, MUTED)))
        if report.effects is not None:
            losses = [effect.loss for effect in report.effects.without]
            columns.append(_Column("loss without it, change", lambda axes: self._signed_bars(axes, losses)))
        return columns

    def _lengths(self) -> tuple[str, Callable[[Axes], None]]:
        if self._view.layers:
            return "length beside a text's", self._draw_relative_lengths
        return "length among the vocabulary's", self._draw_lengths

    # --- columns

    def _draw_lengths(self, axes: Axes) -> None:
        norms = self._view.vocabulary_norms
        axes.axvspan(norms[5], norms[95], color=BAND, lw=0, zorder=0)
        axes.axvline(norms[50], color=MUTED, lw=0.8, zorder=1)
        self._dots(axes, [token.norm for token in self._view.virtual_tokens], BLUE)
        axes.set_xlim(left=0)
        axes.set_xlabel("L2; band: 5 to 95 % of the vocabulary", fontsize=7, color=MUTED)

    def _draw_relative_lengths(self, axes: Axes) -> None:
        tokens = [token for token in self._view.virtual_tokens if isinstance(token, CachedToken)]
        axes.axvline(1.0, color=MUTED, lw=0.8, zorder=1)
        self._dots(axes, [token.key_norm for token in tokens], BLUE, "keys")
        self._dots(axes, [token.value_norm for token in tokens], ORANGE, "values")
        axes.margins(x=0.15)
        axes.set_xlabel("1 is the median of a text", fontsize=7, color=MUTED)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, -0.02 - 0.62 / self._body_in), ncol=2, fontsize=7, frameon=False,
            handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip

    def _dots(self, axes: Axes, values: Sequence[float], colour: str, label: str | None = None) -> None:
        size = min(22.0, max(4.0, (0.55 * self._line_pt) ** 2))
        axes.scatter(values, range(len(values)), s=size, color=colour, lw=0, zorder=3, label=label)

    def _bars(self, axes: Axes, values: Sequence[float], colour: str | list[str]) -> None:
        axes.barh(range(len(values)), values, height=0.62, color=colour, lw=0, zorder=2)

    def _signed_bars(self, axes: Axes, values: Sequence[float]) -> None:
        """Red: the answers are worse without it."""
        self._bars(axes, values, [RED if value > 0 else GREEN for value in values])
        reach = 1.1 * max(1e-6, *map(abs, values))
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color=INK, lw=0.6, zorder=3)
        axes.set_xlabel("right: it is needed", fontsize=7, color=MUTED)

    def _draw_similarity(self, axes: Axes) -> None:
        mesh = axes.pcolormesh(
            self._view.similarity.cpu().numpy(), cmap="RdBu_r", vmin=-1, vmax=1,
            edgecolors="white", linewidth=0.4 if len(self._view.similarity) <= MAX_LABELLED else 0.0,
            rasterized=len(self._view.similarity) > MAX_LABELLED,
        )  # fmt: skip
        axes.set_ylim(len(self._view.similarity), 0)
        axes.grid(visible=False)
        axes.set_yticks([])
        if len(self._view.similarity) <= MAX_LABELLED:
            step = max(1, len(self._view.similarity) // 10)
            places = range(0, len(self._view.similarity), step)
            axes.set_xticks([place + 0.5 for place in places], [str(place) for place in places])
        bar = axes.inset_axes((1.03, 0.0, 0.035, 1.0))
        self._figure.colorbar(mesh, cax=bar, ticks=[-1, 0, 1])
        bar.tick_params(labelsize=7, colors=MUTED, length=2)
        bar.spines[:].set_visible(False)
        for spine in bar.spines.values():
            spine.set_visible(False)

    # --- layers of keys and values

    def _draw_layers(self, width_in: float) -> None:
        top_in = HEAD_IN + self._body_in + AXIS_IN + AXIS_IN
        panel_in = (width_in - MARGIN_IN - self._label_in - BAR_IN - MARGIN_IN - 3 * GAP_IN) / 2
        for i, (part, colour) in enumerate((("keys", BLUE), ("values", ORANGE))):
            axes = self._add_axes(
                MARGIN_IN + self._label_in + i * (panel_in + 3 * GAP_IN), top_in, panel_in, LAYERS_IN - AXIS_IN
            )
            self._draw_layer_norms(axes, part, colour)

    def _draw_layer_norms(self, axes: Axes, part: str, colour: str) -> None:
        """The text as a band of 5 to 95 % around its median, the prompt as lines of 5 to 95 % through theirs."""
        layers = self._view.layers
        places = [layer.layer for layer in layers]
        text = [getattr(layer, f"text_{part}") for layer in layers]
        prompt = [getattr(layer, part) for layer in layers]
        edges = [places[0] - 0.4, *places, places[-1] + 0.4]
        low, middle, high = ([norms[p] for norms in (text[0], *text, text[-1])] for p in (5, 50, 95))
        axes.fill_between(edges, low, high, color=BAND, lw=0, label="a text, 5 to 95 %")
        axes.plot(edges, middle, color=MUTED, lw=0.8)
        axes.vlines(places, [n[5] for n in prompt], [n[95] for n in prompt], color=colour, lw=2.2, label="the prompt")
        axes.scatter(places, [n[50] for n in prompt], s=26, color="white", edgecolors=colour, lw=1.4, zorder=3)
        axes.set_ylim(bottom=0)
        axes.set_xticks(places[:: max(1, len(places) // 16)])
        axes.set_xlabel("layer", fontsize=7, color=MUTED)
        axes.legend(loc="lower right", fontsize=7, frameon=False)
        _style(axes, f"length of {part} by layer")

    # --- frame

    def _prepare_lines(self, axes: Axes, title: str, *, is_named: bool) -> None:
        num = len(self._view.virtual_tokens)
        _style(axes, title)
        axes.set_ylim(num - 0.5, -0.5)
        axes.set_yticks([])
        if num <= MAX_LABELLED:
            for place in range(0, num, 2):
                axes.axhspan(place - 0.5, place + 0.5, color="#f7f9fb", lw=0, zorder=-1)
        if is_named:
            step = 1 if num <= MAX_LABELLED else -(-num // 20)
            places = range(0, num, step)
            axes.set_yticks(places, [_name_line(self._view, place) for place in places])
            axes.tick_params(axis="y", length=0, labelsize=min(8.0, 0.62 * self._line_pt * step), labelcolor=INK)
            for label in axes.get_yticklabels():
                label.set_parse_math(False)

    def _write_head_and_foot(self, width_in: float, height_in: float) -> None:
        view = self._view
        facts = [
            f"{len(view.virtual_tokens)} virtual token{'s' * (len(view.virtual_tokens) > 1)}, {view.kind.value}",
            f"clusters: {_name_groups(view.clusters)}",
            f"near-duplicates: {_name_groups(view.near_duplicates)}",
        ]
        self._write(MARGIN_IN, 0.16, self._report.model, size=13, weight="bold")
        self._write(MARGIN_IN, 0.40, "  ·  ".join(facts), size=8, color=MUTED)
        lines = textwrap.wrap(view.note, int(width_in * 17))
        self._write(MARGIN_IN, height_in - 0.2 - 0.15 * len(lines), "\n".join(lines), size=7, color=MUTED)

    def _write(self, left_in: float, top_in: float, text: str, **style: Any) -> None:
        width_in, height_in = self._figure.get_size_inches()
        style = {"color": INK, **style}
        self._figure.text(
            left_in / width_in, 1 - top_in / height_in, text, va="top", parse_math=False, linespacing=1.4, **style
        )

    def _add_axes(self, left_in: float, top_in: float, width_in: float, height_in: float) -> Axes:
        whole_width, whole_height = self._figure.get_size_inches()
        bottom_in = whole_height - top_in - height_in
        return self._figure.add_axes(
            (left_in / whole_width, bottom_in / whole_height, width_in / whole_width, height_in / whole_height)
        )


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=5, parse_math=False)
    axes.tick_params(axis="both", labelsize=7, colors=MUTED, length=2, width=0.5)
    axes.grid(axis="x", color=GRID, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=4)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(GRID)


def _name_line(view: PromptView, index: int) -> str:
    """The index, and of embeddings the nearest token with its cosine."""
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
    is_drawn = (
        shown
        and "\ufffd" not in shown
        and all(
            unicodedata.category(character)[0] not in "CMZ" and font.get_char_index(ord(character))
            for character in shown
        )
    )
    if not is_drawn:
        return f"#{token_id}"
    return shown if len(shown) <= MAX_TOKEN_CHARS else f"{shown[: MAX_TOKEN_CHARS - 1]}…"


def _name_groups(groups: Groups) -> str:
    named = ["+".join(map(str, group[:8])) + ("+…" if len(group) > 8 else "") for group in groups[:MAX_GROUPS_NAMED]]
    more = len(groups) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "") if named else "none"
