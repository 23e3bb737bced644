"""Two source trees of softswap: is this one slower than the other?

Each tree is a server in a process of its own, started as a user starts it, so the trees have to agree on routes and
settings only. Both stay warm over all rounds, take turns, and are stopped (SIGSTOP) while the other one is asked. What
counts is CPU time of the server's process: other programs lengthen it far less than wall time. It is measured with one
thread unless `--threads` says otherwise, since several wait for each other by spinning.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from scipy.stats import t as student

from benchmarks.machine import Stopwatch
from benchmarks.models import TINY
from benchmarks.part import Part, Ratio, Say
from benchmarks.peers.http import HttpPeer, completion_body
from benchmarks.server import ROOT, RunningServer
from benchmarks.setup import Setup
from benchmarks.workloads import Workload

NUM_DECISIONS = 256
"""Of the model of full size; the tiny one decides as many as a call may have."""
NUM_REPEATS_OF_TINY = 2
"""A load on the tiny model is over in a moment."""
SETTLE_S = 0.1
"""What a server still does after its last answer counts too."""

Answers = list[Any]


@dataclass(frozen=True)
class Load:
    """Attributes:
    send: asks a server, and gives what came back: it must be the same from both trees.
    unit: what the CPU time is divided by, and how many of them a round has.
    """

    name: str
    send: Callable[[RunningServer], Answers]
    unit: str
    num_units: int


@dataclass
class Comparison:
    """One load. Attributes: ours, theirs: seconds of the process's CPU by round; *_wall_s: of the clock."""

    load: Load
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    ours_wall_s: list[float] = field(default_factory=list)
    theirs_wall_s: list[float] = field(default_factory=list)
    num_equal: int = 0

    @property
    def figures(self) -> dict[str, float]:
        ratio, low, high = ratio_with_interval(self.ours, self.theirs)
        wall, wall_low, wall_high = ratio_with_interval(self.ours_wall_s, self.theirs_wall_s)
        per_unit = 1000 / self.load.num_units
        return {
            "this tree, CPU ms": per_unit * statistics.median(self.ours),
            "the other, CPU ms": per_unit * statistics.median(self.theirs),
            "ratio": ratio, "from": low, "to": high,
            "ratio of wall time": wall, "wall from": wall_low, "wall to": wall_high,
            "rounds with equal answers": self.num_equal,
        }  # fmt: skip

    @property
    def rounds(self) -> dict[str, list[float]]:
        return {
            "this tree, CPU s": self.ours,
            "the other, CPU s": self.theirs,
            "this tree, wall s": self.ours_wall_s,
            "the other, wall s": self.theirs_wall_s,
        }


def ratio_with_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of the rounds' ratios and its 95 % interval (Student's t over their logarithms).

    Of a single round the interval is unbounded.
    """
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return float(np.exp(mean)), 0.0, float("inf")
    reach = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    low, middle, high = np.exp([mean - reach, mean, mean + reach])
    return float(middle), float(low), float(high)


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """The mixed load as completions and as streams, and decisions in one call; a tiny model shows Python alone."""
    setting, other = setup.setting, setup.setting.other
    if other is None or not (other / "app").is_dir():
        raise SystemExit("trees: --other names a folder that holds the other tree's app")
    comparisons = []
    with Stopwatch() as stopwatch, ExitStack() as stack:
        for load, ours, theirs in _start(stack, setup, other, say):
            comparison = Comparison(load)
            comparisons.append((comparison, ours, theirs))
            for server in (ours, theirs):
                _ask(server, load)  # warms up
        for number in range(setting.num_rounds):
            say(f"round {number + 1} of {setting.num_rounds}")
            for comparison, ours, theirs in comparisons:
                _compare(comparison, ours, theirs, ours_first=number % 2 == 0)
        served_s = sum(server.cpu_s for server in {id(s): s for _, *both in comparisons for s in both}.values())
    found = [comparison for comparison, *_ in comparisons]
    yield Part(
        name="trees",
        question="Is this tree of softswap slower than another one?",
        setting={
            "this": _commit(ROOT),
            "other": _commit(other),
            "threads": setting.threads or 1,
            "rounds": setting.num_rounds,
        },
        figures={f"{each.load.name}, each {each.load.unit}": each.figures for each in found},
        rounds={each.load.name: each.rounds for each in found},
        ratios={
            f"{each.load.name}: CPU time, this tree / the other": Ratio(value, low=low, high=high, at_most=1.0)
            for each in found
            for value, low, high in [ratio_with_interval(each.ours, each.theirs)]
        },
        foreign_cores=stopwatch.foreign_cores_without(served_s),
    )


def _start(
    stack: ExitStack, setup: Setup, other: Path, say: Say
) -> Iterator[tuple[Load, RunningServer, RunningServer]]:
    """Every load with the servers that it goes to; servers of one model and workload are shared."""
    setting = setup.setting
    models = [(Setup(replace(setting, shape=TINY)), ", tiny model", setting.num_decisions, NUM_REPEATS_OF_TINY)]
    if not setting.is_smoke:
        models.append((setup, "", NUM_DECISIONS, 1))
    for each, word, num_decisions, num_repeats in models:
        mixed, choices = each.workload, each.decisions(num_decisions)
        say(f"starting servers of both trees with {each.setting.shape.name}")
        for workload, loads in (
            (mixed, [_completions(mixed, word, num_repeats), _streams(mixed, word, num_repeats)]),
            (choices, [_decisions(choices, each.texts(choices), word, num_repeats)]),
        ):
            ours, theirs = (
                stack.enter_context(
                    _stopped(stack.enter_context(each.server(workload, tree=tree, threads=setting.threads or 1)))
                )
                for tree in (ROOT, other)
            )
            for load in loads:
                yield load, ours, theirs


@contextmanager
def _stopped(server: RunningServer) -> Iterator[RunningServer]:
    """Stops a server; whoever asks it continues it meanwhile."""
    os.kill(server.process_id, signal.SIGSTOP)
    try:
        yield server
    finally:
        os.kill(server.process_id, signal.SIGCONT)


def _completions(workload: Workload, word: str, num_repeats: int) -> Load:
    bodies = [completion_body(request, workload, stream=False) for request in workload.requests]

    def send(server: RunningServer) -> Answers:
        with ThreadPoolExecutor(len(bodies)) as clients:
            for _ in range(num_repeats):
                found = list(clients.map(lambda body: _post(server, "/v1/completions", body), bodies))
        return [answer["choices"][0]["text"] for answer in found]

    return Load(f"completions{word}", send, "token", num_repeats * workload.num_generated_tokens)


def _streams(workload: Workload, word: str, num_repeats: int) -> Load:
    def send(server: RunningServer) -> Answers:
        return [HttpPeer(server).streams(workload).num_tokens for _ in range(num_repeats)]

    return Load(f"streams{word}", send, "token", num_repeats * workload.num_generated_tokens)


def _decisions(workload: Workload, texts: Sequence[str], word: str, num_repeats: int) -> Load:
    def send(server: RunningServer) -> Answers:
        return [HttpPeer(server).one_call(workload, texts).tokens for _ in range(num_repeats)]

    return Load(f"decisions in one call{word}", send, "decision", num_repeats * len(workload.requests))


def _post(server: RunningServer, route: str, body: bytes) -> Any:
    with urlopen(Request(f"{server.url}{route}", body, {"content-type": "application/json"})) as answer:
        return json.load(answer)


def _ask(server: RunningServer, load: Load) -> tuple[Answers, float, float]:
    """(answers, CPU seconds of the server, seconds)."""
    os.kill(server.process_id, signal.SIGCONT)
    try:
        before_s, began_s = server.cpu_s, time.perf_counter()
        answers = load.send(server)
        took_s = time.perf_counter() - began_s
        time.sleep(SETTLE_S)
        return answers, server.cpu_s - before_s, took_s
    finally:
        os.kill(server.process_id, signal.SIGSTOP)


def _compare(comparison: Comparison, ours: RunningServer, theirs: RunningServer, *, ours_first: bool) -> None:
    """One round."""
    found = {}
    for server in (ours, theirs) if ours_first else (theirs, ours):
        found[server], cpu_s, wall_s = _ask(server, comparison.load)
        (comparison.ours if server is ours else comparison.theirs).append(cpu_s)
        (comparison.ours_wall_s if server is ours else comparison.theirs_wall_s).append(wall_s)
    comparison.num_equal += found[ours] == found[theirs]


def _commit(tree: Path) -> str:
    """As git names what is checked out there, or the folder's name."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return found.stdout.strip() or tree.name
