"""Interleaved repetitions: every contender once in each round, so that a slow minute of the machine hits all alike.

Engines can take turns step by step (`interleave_steps`), so that a slow second hits all alike too: on a machine that is
shared with strangers, whole runs of the same load were seen to differ by half, and their ratios by a fifth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from benchmarks.machine import Stopwatch
from benchmarks.peers.outcome import Outcome
from benchmarks.peers.softswap import SoftswapRun
from benchmarks.workloads import Workload

T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        workload: what it is given in a round, by the round's number; made outside the measured time.
        run: does it.
    """

    name: str
    workload: Callable[[int], Workload]
    run: Callable[[Workload], Outcome]


@dataclass(frozen=True)
class SteppedContender:
    """One row of a table that others may interrupt after every step.

    Attributes:
        workload: as a `Contender`'s.
        start: begins it; each contender needs an engine of its own.
    """

    name: str
    workload: Callable[[int], Workload]
    start: Callable[[Workload], SoftswapRun]


@dataclass
class Measurement:
    """What a contender took, one entry for each round.

    Attributes:
        first_token_s: the median over the round's requests.
        num_cached_tokens: of the last round.
        first_tokens: the tokens generated in the first round.
    """

    name: str
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    foreign_cores: list[float | None] = field(default_factory=list)
    num_requests: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    first_tokens: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def median_tokens_per_s(self) -> float:
        return statistics.median(self.tokens_per_s)

    @property
    def median_wall_s(self) -> float:
        return statistics.median(self.wall_s)

    @property
    def median_cpu_s(self) -> float:
        return statistics.median(self.cpu_s)

    @property
    def median_cpu_s_per_token(self) -> float:
        """Of a generated token; every round generates as many."""
        return self.median_cpu_s / self.num_generated_tokens

    @property
    def median_first_token_s(self) -> float | None:
        """None where the contender does not tell."""
        return statistics.median(self.first_token_s) if self.first_token_s else None

    @property
    def max_foreign_cores(self) -> float | None:
        return max((cores for cores in self.foreign_cores if cores is not None), default=None)

    def add(
        self, workload: Workload, outcome: Outcome, *, wall_s: float, cpu_s: float, foreign_cores: float | None
    ) -> None:
        """Note a round."""
        assert all(count == workload.num_new_tokens for count in outcome.num_tokens)
        self.num_requests = len(workload.requests)
        self.num_generated_tokens = workload.num_generated_tokens
        self.wall_s.append(wall_s)
        self.cpu_s.append(cpu_s)
        self.tokens_per_s.append(workload.num_generated_tokens / wall_s)
        if outcome.first_token_s:
            self.first_token_s.append(statistics.median(outcome.first_token_s))
        self.foreign_cores.append(foreign_cores)
        self.num_cached_tokens = outcome.num_cached_tokens
        self.first_tokens = self.first_tokens or outcome.tokens

    def as_json(self) -> dict[str, object]:
        return {
            "num_requests": self.num_requests,
            "wall_s": [round(value, 4) for value in self.wall_s],
            "cpu_s": [round(value, 4) for value in self.cpu_s],
            "tokens_per_s": [round(value, 2) for value in self.tokens_per_s],
            "median_tokens_per_s": round(self.median_tokens_per_s, 2),
            "median_first_token_s": None if self.median_first_token_s is None else round(self.median_first_token_s, 4),
            "num_cached_tokens": self.num_cached_tokens,
            "foreign_cores": [None if value is None else round(value, 3) for value in self.foreign_cores],
        }


def interleave(
    contenders: Sequence[Contender], repetitions: int, on_round: Callable[[str], None]
) -> dict[str, Measurement]:
    """Runs all contenders `repetitions` times, each round beginning with another one.

    Args: on_round: told what is about to run, for a person who waits.
    """
    name_to_measurement = {contender.name: Measurement(contender.name) for contender in contenders}
    for repetition in range(repetitions):
        for contender in _rotated(contenders, repetition):
            on_round(f"round {repetition + 1} of {repetitions}: {contender.name}")
            _measure(contender, repetition, name_to_measurement[contender.name])
    return name_to_measurement


def _measure(contender: Contender, repetition: int, measurement: Measurement) -> None:
    workload = contender.workload(repetition)
    with Stopwatch() as stopwatch:
        outcome = contender.run(workload)
    foreign_cores = stopwatch.foreign_cores
    if foreign_cores is not None:
        foreign_cores = max(0.0, foreign_cores - outcome.elsewhere_s / stopwatch.wall_s)
    cpu_s = stopwatch.cpu_s + outcome.elsewhere_s
    measurement.add(workload, outcome, wall_s=stopwatch.wall_s, cpu_s=cpu_s, foreign_cores=foreign_cores)


def interleave_steps(
    contenders: Sequence[SteppedContender], repetitions: int, on_round: Callable[[str], None]
) -> dict[str, Measurement]:
    """The same, but within a round the contenders take turns after every step, each turn beginning with another one.

    A contender's seconds are those of its own steps; what other programs used is that of the whole round.
    """
    name_to_measurement = {contender.name: Measurement(contender.name) for contender in contenders}
    for repetition in range(repetitions):
        on_round(f"round {repetition + 1} of {repetitions}: {', '.join(name_to_measurement)}, step by step")
        workloads = [contender.workload(repetition) for contender in contenders]
        with Stopwatch() as stopwatch:
            runs = [contender.start(workload) for contender, workload in zip(contenders, workloads, strict=True)]
            _take_turns(runs)
        for measurement, workload, run in zip(name_to_measurement.values(), workloads, runs, strict=True):
            measurement.add(
                workload, run.outcome, wall_s=run.wall_s, cpu_s=run.cpu_s, foreign_cores=stopwatch.foreign_cores
            )
    return name_to_measurement


def _take_turns(runs: Sequence[SoftswapRun]) -> None:
    for turn in count():
        unfinished = [run for run in runs if not run.is_finished]
        if not unfinished:
            return
        for run in _rotated(unfinished, turn):
            run.step()


def _rotated(those: Sequence[T], by: int) -> Iterator[T]:
    start = by % len(those)
    yield from those[start:]
    yield from those[:start]
