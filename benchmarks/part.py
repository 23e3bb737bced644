"""Part: what every benchmark gives, and the JSON that keeps it."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.rounds import Measurement

Say = Callable[[str], None]
"""Tells a person who waits what is happening now."""

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """A quotient of two medians, and what it should be.

    Attributes:
        cpu_value: the same quotient by CPU time, if that was measured. With one thread it holds on a busy machine,
            unlike `value`; with several it counts OpenMP's waiting.
        low, high: the 95 % interval of `value`, if rounds were compared one by one.
        at_least, at_most: the bound; with an interval it is missed only when the whole interval is beyond it.
    """

    value: float
    cpu_value: float | None = None
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        return (self.at_least is None or high >= self.at_least) and (self.at_most is None or low <= self.at_most)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def as_json(self) -> dict[str, object]:
        interval = None if self.low is None or self.high is None else [round(self.low, 4), round(self.high, 4)]
        return {
            "value": round(self.value, 3),
            "cpu_value": None if self.cpu_value is None else round(self.cpu_value, 3),
            "interval": interval,
            "target": self.target,
            "is_reached": self.is_reached,
        }


def speed(found: Mapping[str, Measurement], ours: str, theirs: str, at_least: float | None = None) -> Ratio:
    """Tokens per second of `ours` over those of `theirs`: more is better."""
    one, other = found[ours], found[theirs]
    cpu_value = other.median_cpu_s_per_token / one.median_cpu_s_per_token
    return Ratio(one.median_tokens_per_s / other.median_tokens_per_s, cpu_value, at_least=at_least)


def duration(found: Mapping[str, Measurement], ours: str, theirs: str, at_most: float | None = None) -> Ratio:
    """Seconds of `ours` over those of `theirs` for the same requests: less is better."""
    one, other = found[ours], found[theirs]
    cpu_value = one.median_cpu_s_per_token / other.median_cpu_s_per_token
    return Ratio(statistics.median(one.wall_s) / statistics.median(other.wall_s), cpu_value, at_most=at_most)


@dataclass(frozen=True)
class Part:
    """One question: the contenders that were measured for it and the ratios that answer it.

    Attributes:
        setting: what a reader needs to know, such as the size of the KV cache.
        contenders: what ran a workload in rounds.
        agreement: a sentence's subject ("A = B") to what `Agreement` counted.
        figures: what is not a run of a workload: a row's name to its columns.
        rounds: what those figures were computed from: a row's name to its columns, each with a value for every round.
        cannot: contenders that cannot do this, and why.
        foreign_cores: what other programs used, if the contenders do not tell.
    """

    name: str
    question: str
    setting: Mapping[str, object]
    contenders: Mapping[str, Measurement] = field(default_factory=dict)
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rounds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)
    foreign_cores: float | None = None

    def as_json(self) -> dict[str, Any]:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "name"}
        contenders = {name: each.as_json() for name, each in self.contenders.items()}
        return fields | {
            "contenders": contenders,
            "ratios": {name: each.as_json() for name, each in self.ratios.items()},
        }


def failed(name: str, error: Exception) -> Part:
    """A part that came to no end."""
    reason = f"{type(error).__name__}: {str(error)[:300]}"
    return Part(name=name, question="failed", setting={}, cannot={name: reason})


class Run:
    """One call of the program: what it measured so far, and the file that keeps it.

    Args:
        names: of the parts that were asked for.
        folder: where the file is written after every part; None keeps nothing.
    """

    def __init__(self, names: Sequence[str], command: str, setting: Mapping[str, object], folder: Path | None) -> None:
        self._facts = {
            "benchmark": "+".join(names),
            "command": command,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "setting": dict(setting),
        }
        moment = re.sub(r"[^0-9T]", "", str(self._facts["measured_at"]).partition("+")[0])
        self._path = folder and folder / f"{self._facts['benchmark']}-{setting['shape']}-{moment}.json"
        self._parts: dict[str, dict[str, Any]] = {}

    @property
    def result(self) -> dict[str, Any]:
        """Everything that a later page or comparison needs, without this program."""
        return {**self._facts, "parts": self._parts}

    def add(self, part: Part) -> None:
        """Keeps everything so far."""
        self._parts[part.name] = part.as_json()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.result, indent=2) + "\n")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The newest first."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(runs, key=lambda run: str(run["measured_at"]), reverse=True)
