"""`python -m benchmarks.page`: docs/benchmarks/results.md and its pictures, from what `--save` kept.

For each workload and dtype the newest runs are shown, as many as it takes to show every contender that was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page_pictures import NAME_TO_PICTURE
from benchmarks.page_tables import contender_table, figure_table, ratio_table, sentence_of_agreement
from benchmarks.parts.catalogue import NAME_TO_PART
from benchmarks.report import FOREIGN_CORES_LIMIT, RESULTS

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
DTYPES = ("float32", "bfloat16")
HEAD = """# Benchmark results

Made by `python -m benchmarks.page` from [benchmarks/results](../../benchmarks/results); what is measured, and how, is
in [benchmarks.md](../benchmarks.md). A ratio is one of medians of the same run. Runs differ in how busy the machine
was, so that figures of different runs are not compared.
"""


@dataclass(frozen=True)
class Shown:
    """One part of one run.

    Attributes:
        part: as `Part.as_json` wrote it.
        run: as `run_as_json` wrote it.
    """

    part: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def rows(self) -> set[str]:
        """Names of what was measured."""
        return {*self.part["contenders"], *self.part["figures"]}

    @property
    def foreign_cores(self) -> float | None:
        """What other programs used, at most; None where contenders do not tell."""
        seen = (cores for each in self.part["contenders"].values() for cores in each["foreign_cores"])
        return max((cores for cores in seen if cores is not None), default=None)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Runs of `python -m benchmarks`, the newest first; results of other programs lie there too and have no command."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted((run for run in runs if "command" in run), key=lambda run: str(run["measured_at"]), reverse=True)


def choose(runs: Iterable[Mapping[str, Any]], name: str, dtype: str) -> list[Shown]:
    """Of one part, the newest first: runs that measured something no newer one did."""
    chosen: list[Shown] = []
    for run in runs:
        if run["setting"]["dtype"] == dtype and name in run["parts"]:
            shown = Shown(run["parts"][name], run)
            if shown.rows - {row for newer in chosen for row in newer.rows}:
                chosen.append(shown)
    return chosen


def write_page(runs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Writes results.md and the pictures it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in NAME_TO_PICTURE.items():
        dtype_to_parts = {dtype: [shown.part for shown in choose(runs, name, dtype)] for dtype in DTYPES}
        measured = {dtype: parts for dtype, parts in dtype_to_parts.items() if parts}
        if measured:
            (folder / f"{name}.svg").write_text(draw(measured), encoding="utf-8")
    (folder / "results.md").write_text(render_page(runs), encoding="utf-8")


def render_page(runs: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join([HEAD, *(_section(runs, name) for name in NAME_TO_PART)])


def _section(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    dtype_to_shown = {dtype: choose(runs, name, dtype) for dtype in DTYPES}
    all_shown = [shown for each in dtype_to_shown.values() for shown in each]
    if not all_shown:
        return f"## {name}\n\nNot measured yet.\n"
    question = str(all_shown[0].part["question"])
    lines = [f"## {name}", "", f"{question[0].upper()}{question[1:]}", ""]
    if name in NAME_TO_PICTURE:
        lines += [f"![{question}]({name}.svg)", ""]
    for dtype, each in dtype_to_shown.items():
        for shown in each:
            lines += [f"### {name}, {dtype}", "", _run(shown)]
    return "\n".join(lines)


def _run(shown: Shown) -> str:
    part, run = shown.part, shown.run
    setting = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in part["setting"].items())
    blocks = [f"```console\n$ {run['command']}\n```", f"{_machine(shown)} {setting}."]
    if part["ratios"]:
        blocks.append(ratio_table(part["ratios"]))
    if part["contenders"]:
        blocks.append(contender_table(part["contenders"]))
    if part["figures"]:
        blocks.append(figure_table(part["figures"]))
    blocks += [sentence_of_agreement(name, agreement) for name, agreement in part["agreement"].items()]
    blocks += [f"{name}: {reason}." for name, reason in part["cannot"].items()]
    return "\n\n".join(blocks) + "\n"


def _machine(shown: Shown) -> str:
    machine, moment = shown.run["machine"], str(shown.run["measured_at"]).replace("T", " ").partition("+")[0]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    cpu = f"{machine['cpu']} ({machine['instruction_set']}), {machine['num_threads']} threads"
    others = ""
    if shown.foreign_cores is not None:
        word = ", too much to trust it" if shown.foreign_cores > FOREIGN_CORES_LIMIT else ""
        others = f"; other programs used at most {shown.foreign_cores:.2f} cores{word}"
    return f"{moment} UTC, {cpu}, {versions}{others}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    write_page(read_runs(options.results), options.docs)


if __name__ == "__main__":
    main()
