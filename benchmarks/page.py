"""Markdown of what was measured: of one part for the console, and docs/benchmarks/results.md with its pictures.

For each part and dtype the page shows the newest runs, as many as it takes to show every contender that was measured.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.part import RESULTS, read_runs

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
DTYPES = ("float32", "bfloat16")
FOREIGN_CORES_LIMIT = 0.1
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
HEAD = """# Benchmark results

Made by `python -m benchmarks page` from [benchmarks/results](../../benchmarks/results); what is measured and how is in
[benchmarks.md](../benchmarks.md). A ratio is one of medians of the same run. Runs differ in machine and load, so
figures of different runs are not compared.
"""


@dataclass(frozen=True)
class Shown:
    """One part of one run, as their `as_json` and `result` gave them."""

    name: str
    part: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def rows(self) -> set[str]:
        """Names of what was measured."""
        return {*self.part["contenders"], *self.part["figures"]}


def choose(runs: Iterable[Mapping[str, Any]], name: str, dtype: str) -> list[Shown]:
    """Of one part, the newest first: runs that measured something no newer one did.

    The steps of a part have its name and a colon before their own.
    """
    chosen: list[Shown] = []
    for run in runs:
        if run["setting"]["dtype"] != dtype:
            continue
        for each, part in run["parts"].items():
            shown = Shown(each, part, run)
            seen = {row for newer in chosen if newer.name == each for row in newer.rows}
            if each.partition(":")[0] == name and shown.rows - seen:
                chosen.append(shown)
    return chosen


def write_page(names: Iterable[str], folder: Path = DOCS, results: Path = RESULTS) -> None:
    """Writes results.md and the pictures it shows. Args: names: of all parts."""
    runs = read_runs(results)
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in PICTURES.items():
        dtype_to_parts = {dtype: [shown.part for shown in choose(runs, name, dtype)] for dtype in DTYPES}
        if measured := {dtype: parts for dtype, parts in dtype_to_parts.items() if parts}:
            (folder / f"{name}.svg").write_text(draw_speeds(measured, one), encoding="utf-8")
    (folder / "results.md").write_text(render_page(runs, names), encoding="utf-8")


def render_page(runs: Sequence[Mapping[str, Any]], names: Iterable[str]) -> str:
    return "\n".join([HEAD, *(_section(runs, name) for name in names)])


def render_part(name: str, part: Mapping[str, Any]) -> str:
    """A part's question, setting, tables and sentences."""
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in part["setting"].items())
    cores = _foreign_cores(part)
    others = ""
    if cores is not None:
        word = ", too much to trust it" if cores > FOREIGN_CORES_LIMIT else ""
        others = f" Other programs used at most {cores:.2f} cores{word}."
    blocks = [f"**{name}**: {part['question']} {setting[:1].upper()}{setting[1:]}.{others}"]
    if part["ratios"]:
        blocks.append(_ratio_table(part["ratios"]))
    if part["contenders"]:
        blocks.append(_contender_table(part["contenders"]))
    if part["figures"]:
        blocks.append(_figure_table(part["figures"]))
    blocks += [_agreement(name, agreement) for name, agreement in part["agreement"].items()]
    blocks += [f"{name}: {reason}." for name, reason in part["cannot"].items()]
    return "\n\n".join(blocks) + "\n"


def _section(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    shown = [(dtype, each) for dtype in DTYPES for each in choose(runs, name, dtype)]
    lines = [f"## {name}", ""]
    if not shown:
        return "\n".join([*lines, "Not measured yet.", ""])
    if name in PICTURES:
        lines += [f"![{shown[0][1].part['question']}]({name}.svg)", ""]
    for dtype, each in shown:
        command = f"```console\n$ {each.run['command']}\n```"
        body = render_part(each.name, each.part)
        lines += [f"### {each.name}, {dtype}", "", command, "", _machine(each.run), "", body]
    return "\n".join(lines)


def _machine(run: Mapping[str, Any]) -> str:
    machine, moment = run["machine"], str(run["measured_at"]).replace("T", " ").partition("+")[0]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f"({machine['instruction_set']}), {machine['num_threads']} threads"
    return f"{moment} UTC, {machine['cpu']} {threads}, {versions}."


def _foreign_cores(part: Mapping[str, Any]) -> float | None:
    """What other programs used, at most; None if nothing tells."""
    seen = [cores for each in part["contenders"].values() for cores in each["foreign_cores"]]
    return max((cores for cores in [*seen, part["foreign_cores"]] if cores is not None), default=None)


def _ratio_table(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, ratio in ratios.items():
        word = "" if not ratio["target"] else "reached" if ratio["is_reached"] else "**missed**"
        value, interval = f"{ratio['value']:.2f}", ratio.get("interval")
        if interval:
            value = f"{ratio['value']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
        rows.append([name, value, ratio["target"].replace(">=", "at least").replace("<=", "at most"), word])
    return _table(("ratio", "value", "wanted", ""), rows)


def _contender_table(contenders: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, each in contenders.items():
        first_s, rounds = each["median_first_token_s"], " ".join(f"{wall_s:.2f}" for wall_s in each["wall_s"])
        rate, first = f"{each['median_tokens_per_s']:.1f}", "" if first_s is None else f"{first_s:.3f}"
        rows.append([name, str(each["num_requests"]), rate, first, rounds])
    return _table(("contender", "requests", "tokens/s", "first token, s (median)", "rounds, s"), rows)


def _figure_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    rows = [[name, *(_figure(row[key]) if key in row else "" for key in columns)] for name, row in figures.items()]
    return _table(("", *columns), rows)


def _agreement(name: str, agreement: Mapping[str, Any]) -> str:
    """Args: name: such as "softswap = PEFT one by one"."""
    one, _, other = name.partition(" = ")
    sentence = f"{one}: {agreement['num_equal']} of {agreement['num_compared']} answers are {other}'s token for token"
    if agreement["num_equal"] < agreement["num_compared"]:
        sentence += f"; at the first token that differs, the logits are at most {agreement['largest_gap']:.2g} apart"
    return sentence + "."


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    header = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def draw_speeds(dtype_to_parts: Mapping[str, Sequence[Mapping[str, Any]]], one: str) -> str:
    """An SVG of bars: speed of each contender, that of `one` in the same run being 1; it reads well in dark too.

    Args: dtype_to_parts: `Part.as_json` of several runs, the newest first, maybe of different machines.
    """
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


def _relative_speeds(parts: Sequence[Mapping[str, Any]], one: str) -> dict[str, float]:
    """Contender to its speed, the fastest first; of a contender's runs the newest counts."""
    bars: dict[str, float] = {}
    for part in parts:
        base = part["contenders"][one]["median_tokens_per_s"]
        for name, each in part["contenders"].items():
            bars.setdefault(name, each["median_tokens_per_s"] / base)
    return dict(sorted(bars.items(), key=lambda bar: bar[1], reverse=True))


def _draw_bars(axes: Any, bars: Mapping[str, float], one: str) -> None:
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
