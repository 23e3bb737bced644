"""Markdown of what was measured: of one part for the console, and docs/benchmarks/results.md with its pictures.

For each part and dtype the page shows the newest runs, as many as it takes to show every contender that was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.part import RESULTS, read_runs
from benchmarks.pictures import PICTURES, draw_speeds

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
DTYPES = ("float32", "bfloat16")
FOREIGN_CORES_LIMIT = 0.1
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
        measured = {dtype: parts for dtype, parts in dtype_to_parts.items() if parts}
        if measured:
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
    return (
        f"{moment} UTC, {machine['cpu']} ({machine['instruction_set']}), {machine['num_threads']} threads, {versions}."
    )


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
