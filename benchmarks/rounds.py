"""Interleaved rounds: every contender once in each, so that a slow minute of the machine hits all of them alike.

Engines can take turns after every step, so that a slow second hits them alike too: on a machine that is shared with
strangers, whole runs of the same load were seen to differ by half, and their ratios by a fifth.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from benchmarks.machine import Stopwatch
from benchmarks.workloads import Outcome, Workload


class Turns(Protocol):
    """A workload on its way. Attributes: wall_s, cpu_s: what its own steps took so far."""

    wall_s: float
    cpu_s: float

    @property
    def is_finished(self) -> bool: ...

    @property
    def outcome(self) -> Outcome: ...

    def step(self) -> object: ...


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        workload: what it is given in a round, by the round's number; made outside the measured time.
        begin: starts on it. Contenders that take turns step by step need an engine each.
    """

    name: str
    workload: Callable[[int], Workload]
    begin: Callable[[Workload], Turns]


def whole(run: Callable[[Workload], Outcome]) -> Callable[[Workload], Turns]:
    """A contender's `begin` for what nothing may interrupt: its only step is the whole run."""
    return lambda workload: _WholeRun(run, workload)


class _WholeRun:
    outcome: Outcome

    def __init__(self, run: Callable[[Workload], Outcome], workload: Workload) -> None:
        self.wall_s = self.cpu_s = 0.0
        self.is_finished = False
        self._run, self._workload = run, workload

    def step(self) -> None:
        with Stopwatch() as stopwatch:
            self.outcome = self._run(self._workload)
        self.wall_s, self.cpu_s = stopwatch.wall_s, stopwatch.cpu_s + self.outcome.elsewhere_s
        self.is_finished = True


@dataclass
class Measurement:
    """What a contender took, one entry for each round.

    Attributes:
        first_token_s: the median over the round's requests.
        num_cached_tokens: of the last round.
        first_tokens: the tokens generated in the first round.
    """

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
    def median_cpu_s_per_token(self) -> float:
        """Of a generated token; every round generates as many."""
        return statistics.median(self.cpu_s) / self.num_generated_tokens

    def add(self, workload: Workload, run: Turns, foreign_cores: float | None) -> None:
        """Note a round."""
        outcome = run.outcome
        assert all(number == workload.num_new_tokens for number in outcome.num_tokens)
        self.num_requests = len(workload.requests)
        self.num_generated_tokens = workload.num_generated_tokens
        self.wall_s.append(run.wall_s)
        self.cpu_s.append(run.cpu_s)
        self.tokens_per_s.append(workload.num_generated_tokens / run.wall_s)
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
            "median_first_token_s": round(statistics.median(self.first_token_s), 4),
            "num_cached_tokens": self.num_cached_tokens,
            "foreign_cores": [None if value is None else round(value, 3) for value in self.foreign_cores],
        }


def interleave(contenders: Sequence[Contender], num_rounds: int, say: Callable[[str], None]) -> dict[str, Measurement]:
    """Runs all contenders in every round; rounds, and turns within them, each begin with another one.

    A contender's seconds are those of its own steps; what other programs used is that of the whole round.
    """
    found = {contender.name: Measurement() for contender in contenders}
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}: {', '.join(found)}")
        workloads = [contender.workload(number) for contender in contenders]
        with Stopwatch() as stopwatch:
            runs = [contender.begin(workload) for contender, workload in zip(contenders, workloads, strict=True)]
            for turn in count(number):
                unfinished = [run for run in runs if not run.is_finished]
                if not unfinished:
                    break
                first = turn % len(unfinished)
                for run in unfinished[first:] + unfinished[:first]:
                    run.step()
        foreign_cores = stopwatch.foreign_cores_without(sum(run.outcome.elsewhere_s for run in runs))
        for measurement, workload, run in zip(found.values(), workloads, runs, strict=True):
            measurement.add(workload, run, foreign_cores)
    return found
