"""How a run is shown and kept: tables for a person, one JSON object for a program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.agreement import Agreement
from benchmarks.machine import Machine
from benchmarks.rounds import Measurement

Say = Callable[[str], None]
"""Tells a person who waits what happens now."""

RESULTS = Path(__file__).parent / "results"
FOREIGN_CORES_LIMIT = 0.1


@dataclass(frozen=True)
class Ratio:
    """A quotient of two medians, and what it should be.

    Attributes:
        value: by wall time.
        cpu_value: the same quotient by CPU time, where that was measured. With one thread it holds on a busy machine,
            where `value` does not; with several it counts OpenMP's waiting.
        low, high: its 95 % interval, where rounds were compared one by one.
        at_least, at_most: the bound that applies; with an interval it is missed when the whole interval is beyond it.
    """

    name: str
    value: float
    cpu_value: float | None = None
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        too_low = self.at_least is not None and high < self.at_least
        too_high = self.at_most is not None and low > self.at_most
        return not (too_low or too_high)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def as_json(self) -> dict[str, object]:
        return {
            "value": round(self.value, 3),
            "cpu_value": None if self.cpu_value is None else round(self.cpu_value, 3),
            **(
                {} if self.low is None or self.high is None else {"interval": [round(self.low, 4), round(self.high, 4)]}
            ),
            "target": self.target,
            "is_reached": self.is_reached,
        }


@dataclass(frozen=True)
class Part:
    """One question: the contenders measured for it, the ratios that answer it, whether their answers agree.

    Attributes:
        setting: what a reader needs to know besides the dimensions, such as the size of the KV cache.
        name_to_figures: what is not a run of a workload: a row's name to its columns.
        name_to_rounds: what stands for rounds there: a row's name to its columns, of each a value for each round.
        name_to_reason: contenders that cannot do this, and why.
    """

    name: str
    question: str
    setting: Mapping[str, object]
    name_to_measurement: Mapping[str, Measurement] = field(default_factory=dict)
    ratios: tuple[Ratio, ...] = ()
    name_to_agreement: Mapping[str, Agreement] = field(default_factory=dict)
    name_to_figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    name_to_rounds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    name_to_reason: Mapping[str, str] = field(default_factory=dict)

    @property
    def max_foreign_cores(self) -> float | None:
        seen = (measurement.max_foreign_cores for measurement in self.name_to_measurement.values())
        return max((cores for cores in seen if cores is not None), default=None)

    def as_json(self) -> dict[str, object]:
        return {
            "question": self.question,
            "setting": dict(self.setting),
            "contenders": {name: each.as_json() for name, each in self.name_to_measurement.items()},
            "ratios": {ratio.name: ratio.as_json() for ratio in self.ratios},
            "agreement": {name: asdict(agreement) for name, agreement in self.name_to_agreement.items()},
            "figures": {name: dict(figures) for name, figures in self.name_to_figures.items()},
            "rounds": {name: {k: list(v) for k, v in each.items()} for name, each in self.name_to_rounds.items()},
            "cannot": dict(self.name_to_reason),
        }


def run_as_json(
    names: Sequence[str], command: str, machine: Machine, setting: Mapping[str, object], parts: Iterable[Part]
) -> dict[str, Any]:
    """Everything a later page or comparison needs, without this program."""
    return {
        "benchmark": "+".join(names),
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(machine),
        "setting": dict(setting),
        "parts": {part.name: part.as_json() for part in parts},
    }


def save(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Keep a run as `<benchmark>-<shape>-<moment>.json`; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = re.sub(r"[^0-9T]", "", str(result["measured_at"]).partition("+")[0])
    path = folder / f"{result['benchmark']}-{result['setting']['shape']}-{moment}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def figure_columns(name_to_figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All columns of any row, in the order in which they appear."""
    return list(dict.fromkeys(column for figures in name_to_figures.values() for column in figures))


def show_part(console: Console, part: Part) -> None:
    console.print(f"\n[bold]{part.name}[/bold]: {part.question}")
    console.print("  " + ", ".join(f"{name} {value}" for name, value in part.setting.items()), style="dim")
    if part.name_to_measurement:
        console.print(_contender_table(part.name_to_measurement.values()))
    if part.name_to_figures:
        console.print(_figure_table(part.name_to_figures))
    for name, reason in part.name_to_reason.items():
        console.print(f"  {name}: {reason}")
    if part.ratios:
        console.print(_ratio_table(part.ratios))
    for name, agreement in part.name_to_agreement.items():
        console.print(
            f"  {name}: {agreement.num_equal} of {agreement.num_compared} answers equal token for token; the others "
            f"part where logits are at most {agreement.largest_gap:.2g} apart"
        )
    if part.max_foreign_cores is not None and part.max_foreign_cores > FOREIGN_CORES_LIMIT:
        console.print(
            f"  [red]other programs used up to {part.max_foreign_cores:.2f} cores: do not trust this part[/red]"
        )


def _contender_table(measurements: Iterable[Measurement]) -> Table:
    table = Table(
        "contender", *("requests", "median s", "tokens/s", "first token s", "CPU s", "rounds, s", "foreign cores")
    )
    for measurement in measurements:
        foreign = measurement.max_foreign_cores
        table.add_row(
            measurement.name,
            str(measurement.num_requests),
            f"{measurement.median_wall_s:.2f}",
            f"{measurement.median_tokens_per_s:.1f}",
            "" if measurement.median_first_token_s is None else f"{measurement.median_first_token_s:.2f}",
            f"{measurement.median_cpu_s:.2f}",
            " ".join(f"{wall_s:.2f}" for wall_s in measurement.wall_s),
            "" if foreign is None else f"{foreign:.2f}",
        )
    return table


def _figure_table(name_to_figures: Mapping[str, Mapping[str, float]]) -> Table:
    columns = figure_columns(name_to_figures)
    table = Table("", *columns)
    for name, figures in name_to_figures.items():
        table.add_row(name, *(f"{figures[column]:.4g}" if column in figures else "" for column in columns))
    return table


def _ratio_table(ratios: Iterable[Ratio]) -> Table:
    table = Table("ratio", "value", "by CPU time", "target", "")
    for ratio in ratios:
        cpu_value = "" if ratio.cpu_value is None else f"{ratio.cpu_value:.2f}"
        word = "" if not ratio.target else "[green]reached[/green]" if ratio.is_reached else "[red]missed[/red]"
        interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
        table.add_row(ratio.name, f"{ratio.value:.2f}{interval}", cpu_value, ratio.target, word)
    return table
