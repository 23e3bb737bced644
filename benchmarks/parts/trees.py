"""Two source trees of softswap: is this one slower than the other?

Each tree is a server in a process of its own, started as a user starts it, so the trees have to agree on routes and
settings only. Both stay warm over all rounds, take turns, and are stopped (SIGSTOP) while the other one is asked. What
counts is CPU time of the server's process: other programs lengthen it far less than wall time. It is measured with one
thread unless `--threads` says otherwise, since several wait for each other by spinning.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from benchmarks.load import HttpPeer
from benchmarks.machine import Stopwatch
from benchmarks.models import TINY
from benchmarks.part import Part, Ratio, Say
from benchmarks.server import ROOT, RunningServer
from benchmarks.setup import Setup
from benchmarks.workloads import Workload

NUM_DECISIONS = 256
"""Of the model of full size; the tiny one decides as many as a call may have."""
NUM_REPEATS_OF_TINY = 6
"""A load on the tiny model is over in a moment."""
SETTLE_S = 0.1
"""What a server still does after its last answer counts too."""
COLUMNS = "this tree, CPU s", "the other, CPU s", "this tree, wall s", "the other, wall s"

Trees = tuple[RunningServer, RunningServer]
"""The server of this tree and that of the other."""


@dataclass
class Load:
    """Attributes:
    send: asks a server, and gives what came back: it must be the same from both trees.
    unit: what CPU time is divided by.
    num_units: of one call of `send`.
    num_repeats: of `send` in a round.
    rounds: columns with a value for each round.
    num_equal: rounds in which both trees gave the same answers.
    """

    name: str
    send: Callable[[HttpPeer], object]
    unit: str
    num_units: int
    num_repeats: int
    servers: Trees
    rounds: dict[str, list[float]] = field(default_factory=lambda: {column: [] for column in COLUMNS})
    num_equal: int = 0

    def run(self, *, is_reversed: bool) -> None:
        """One round."""
        answers = []
        for index in (1, 0) if is_reversed else (0, 1):
            found, cpu_s, wall_s = self.ask(self.servers[index])
            answers.append(found)
            self.rounds[COLUMNS[index]].append(cpu_s)
            self.rounds[COLUMNS[2 + index]].append(wall_s)
        self.num_equal += answers[0] == answers[1]

    def ask(self, server: RunningServer) -> tuple[object, float, float]:
        """(answers, CPU seconds of the server, seconds)."""
        os.kill(server.process_id, signal.SIGCONT)
        try:
            server.wait_until_ready()
            before_s, began_s = server.cpu_s, time.perf_counter()
            answers = [self.send(HttpPeer(server)) for _ in range(self.num_repeats)]
            took_s = time.perf_counter() - began_s
            time.sleep(SETTLE_S)
            return answers, server.cpu_s - before_s, took_s
        finally:
            os.kill(server.process_id, signal.SIGSTOP)

    @property
    def ratio(self) -> Ratio:
        """Of CPU time."""
        value, low, high = ratio_with_interval(*(self.rounds[column] for column in COLUMNS[:2]))
        return Ratio(value, low=low, high=high, at_most=1.0)

    @property
    def figures(self) -> dict[str, float]:
        num_units = self.num_repeats * self.num_units
        ours, theirs = (1000 * statistics.median(self.rounds[column]) / num_units for column in COLUMNS[:2])
        wall, low, high = ratio_with_interval(*(self.rounds[column] for column in COLUMNS[2:]))
        cpu_time = {"this tree, CPU ms": ours, "the other": theirs}
        wall_time = {"ratio of wall time": wall, "from": low, "to": high}
        return cpu_time | wall_time | {"rounds with equal answers": self.num_equal}


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
    with Stopwatch() as stopwatch, ExitStack() as stack:
        say("starting servers of both trees")
        tiny = Setup(replace(setting, shape=TINY))
        loads = list(_start(stack, tiny, other, ", tiny model", setting.num_decisions, NUM_REPEATS_OF_TINY))
        if not setting.is_smoke:
            loads += _start(stack, setup, other, "", NUM_DECISIONS, 1)
        for load in loads:
            for server in load.servers:
                load.ask(server)  # warms up
        for number in range(setting.num_rounds):
            for load in loads:
                say(f"round {number + 1} of {setting.num_rounds}: {load.name}")
                load.run(is_reversed=number % 2 == 1)
        served_s = sum(server.cpu_s for server in {server for load in loads for server in load.servers})
    yield Part(
        name="trees",
        question="Is this tree of softswap slower than another one?",
        setting={"this": _commit(ROOT), "other": _commit(other), "threads": setting.threads or 1},
        figures={f"{load.name}, each {load.unit}": load.figures for load in loads},
        rounds={load.name: load.rounds for load in loads},
        ratios={f"{load.name}: CPU time, this tree / the other": load.ratio for load in loads},
        foreign_cores=stopwatch.foreign_cores_without(served_s),
    )


def _start(
    stack: ExitStack, setup: Setup, other: Path, word: str, num_decisions: int, num_repeats: int
) -> Iterator[Load]:
    """Every load with the servers that it goes to; servers of one workload are shared."""
    mixed, choices = setup.workload, setup.decisions(num_decisions)
    texts, num_tokens, servers = setup.texts(choices), mixed.num_generated_tokens, _serve(stack, setup, mixed, other)
    more = (num_tokens, num_repeats, servers)
    yield Load(f"completions{word}", lambda peer: peer.completions(mixed), "token", *more)
    yield Load(f"streams{word}", lambda peer: peer.streams(mixed).num_tokens, "token", *more)
    more = (num_decisions, num_repeats, _serve(stack, setup, choices, other))
    yield Load(f"decisions in one call{word}", lambda peer: peer.one_call(choices, texts).tokens, "decision", *more)


def _serve(stack: ExitStack, setup: Setup, workload: Workload, other: Path) -> Trees:
    """Both are stopped until they are asked, and continued before they end."""
    threads = setup.setting.threads or 1
    servers = []
    for tree in (ROOT, other):
        servers.append(stack.enter_context(setup.server(workload, tree=tree, threads=threads)))
        os.kill(servers[-1].process_id, signal.SIGSTOP)
        stack.callback(os.kill, servers[-1].process_id, signal.SIGCONT)
    return servers[0], servers[1]


def _commit(tree: Path) -> str:
    """As git names what is checked out there, or the folder's name."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return found.stdout.strip() or tree.name
