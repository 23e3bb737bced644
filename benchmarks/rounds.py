"""Interleaved repetitions: every contender once in each round, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.machine import Stopwatch
from benchmarks.peers import Outcome
from benchmarks.workloads import Workload


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
    def median_first_token_s(self) -> float:
        return statistics.median(self.first_token_s)

    @property
    def max_foreign_cores(self) -> float | None:
        return max((cores for cores in self.foreign_cores if cores is not None), default=None)

    def as_json(self) -> dict[str, object]:
        return {
            "num_requests": self.num_requests,
            "wall_s": [round(value, 4) for value in self.wall_s],
            "cpu_s": [round(value, 4) for value in self.cpu_s],
            "tokens_per_s": [round(value, 2) for value in self.tokens_per_s],
            "median_tokens_per_s": round(self.median_tokens_per_s, 2),
            "median_first_token_s": round(self.median_first_token_s, 4),
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
    assert all(len(tokens) == workload.num_new_tokens for tokens in outcome.tokens)
    measurement.num_requests = len(workload.requests)
    measurement.num_generated_tokens = workload.num_generated_tokens
    measurement.wall_s.append(stopwatch.wall_s)
    measurement.cpu_s.append(stopwatch.cpu_s)
    measurement.tokens_per_s.append(workload.num_generated_tokens / stopwatch.wall_s)
    measurement.first_token_s.append(statistics.median(outcome.first_token_s))
    measurement.foreign_cores.append(stopwatch.foreign_cores)
    measurement.num_cached_tokens = outcome.num_cached_tokens
    measurement.first_tokens = measurement.first_tokens or outcome.tokens


def _rotated(contenders: Sequence[Contender], by: int) -> Iterator[Contender]:
    start = by % len(contenders)
    yield from contenders[start:]
    yield from contenders[:start]
