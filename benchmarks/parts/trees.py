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
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
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
NUM_REPEATS_OF_TINY = 6
"""A load on the tiny model is over in a moment."""
SETTLE_S = 0.1
"""What a server still does after its last answer counts too."""

Trees = tuple[RunningServer, RunningServer]
"""The server of this tree and that of the other."""


@dataclass
class Load:
    """Attributes:
    send: asks a server, and gives what came back: it must be the same from both trees.
    unit: what CPU time is divided by, and how many of them a round has.
    cpu_s, wall_s: of this tree's server and of the other's, by round.
    """

    name: str
    send: Callable[[RunningServer], object]
    unit: str
    num_units: int
    cpu_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    wall_s: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    num_equal: int = 0

    def run(self, trees: Trees, *, is_reversed: bool) -> None:
        """One round."""
        answers = []
        for index in (1, 0) if is_reversed else (0, 1):
            found, cpu_s, wall_s = self.ask(trees[index])
            answers.append(found)
            self.cpu_s[index].append(cpu_s)
            self.wall_s[index].append(wall_s)
        self.num_equal += answers[0] == answers[1]

    def ask(self, server: RunningServer) -> tuple[object, float, float]:
        """(answers, CPU seconds of the server, seconds)."""
        os.kill(server.process_id, signal.SIGCONT)
        try:
            server.wait_until_ready()
            before_s, began_s = server.cpu_s, time.perf_counter()
            answers = self.send(server)
            took_s = time.perf_counter() - began_s
            time.sleep(SETTLE_S)
            return answers, server.cpu_s - before_s, took_s
        finally:
            os.kill(server.process_id, signal.SIGSTOP)

    @property
    def figures(self) -> dict[str, float]:
        ours, theirs = (1000 * statistics.median(each) / self.num_units for each in self.cpu_s)
        wall, low, high = ratio_with_interval(*self.wall_s)
        wall_time = {"ratio of wall time": wall, "from": low, "to": high}
        return {
            "this tree, CPU ms": ours,
            "the other": theirs,
            **wall_time,
            "rounds with equal answers": self.num_equal,
        }

    @property
    def rounds(self) -> dict[str, list[float]]:
        names = ("this tree, CPU s", "the other, CPU s", "this tree, wall s", "the other, wall s")
        return dict(zip(names, (*self.cpu_s, *self.wall_s), strict=True))


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
        pairs = list(_start(stack, setup, other, say))
        for load, trees in pairs:
            for server in trees:
                load.ask(server)  # warms up
        for number in range(setting.num_rounds):
            for load, trees in pairs:
                say(f"round {number + 1} of {setting.num_rounds}: {load.name}")
                load.run(trees, is_reversed=number % 2 == 1)
        served_s = sum(server.cpu_s for server in {server for _, trees in pairs for server in trees})
    loads = [load for load, _ in pairs]
    ratios = {load.name: ratio_with_interval(*load.cpu_s) for load in loads}
    yield Part(
        name="trees",
        question="Is this tree of softswap slower than another one?",
        setting={"this": _commit(ROOT), "other": _commit(other), "threads": setting.threads or 1},
        figures={f"{load.name}, each {load.unit}": load.figures for load in loads},
        rounds={load.name: load.rounds for load in loads},
        ratios={
            f"{name}: CPU time, this tree / the other": Ratio(value, low=low, high=high, at_most=1.0)
            for name, (value, low, high) in ratios.items()
        },
        foreign_cores=stopwatch.foreign_cores_without(served_s),
    )


def _start(stack: ExitStack, setup: Setup, other: Path, say: Say) -> Iterator[tuple[Load, Trees]]:
    """Every load with the servers that it goes to; servers of one model and workload are shared."""
    setting = setup.setting
    models = [(Setup(replace(setting, shape=TINY)), ", tiny model", setting.num_decisions, NUM_REPEATS_OF_TINY)]
    if not setting.is_smoke:
        models.append((setup, "", NUM_DECISIONS, 1))
    for each, word, num_decisions, repeats in models:
        mixed, choices = each.workload, each.decisions(num_decisions)
        texts, num_tokens = each.texts(choices), repeats * mixed.num_generated_tokens
        bodies = [completion_body(request, mixed, stream=False) for request in mixed.requests]
        completions = _repeated(repeats, partial(_post_all, bodies=bodies))
        streams = _repeated(repeats, partial(_stream, load=mixed))
        decisions = _repeated(repeats, partial(_decide, load=choices, texts=texts))
        say(f"starting servers of both trees with {each.setting.shape.name}")
        trees = _serve(stack, each, mixed, other)
        yield Load(f"completions{word}", completions, "token", num_tokens), trees
        yield Load(f"streams{word}", streams, "token", num_tokens), trees
        num_units = repeats * num_decisions
        yield (
            Load(f"decisions in one call{word}", decisions, "decision", num_units),
            _serve(stack, each, choices, other),
        )


def _serve(stack: ExitStack, setup: Setup, workload: Workload, other: Path) -> Trees:
    """Both are stopped until they are asked, and continued before they end."""
    servers = []
    for tree in (ROOT, other):
        server = stack.enter_context(setup.server(workload, tree=tree, threads=setup.setting.threads or 1))
        os.kill(server.process_id, signal.SIGSTOP)
        stack.callback(os.kill, server.process_id, signal.SIGCONT)
        servers.append(server)
    return servers[0], servers[1]


def _repeated(number: int, send: Callable[[RunningServer], object]) -> Callable[[RunningServer], object]:
    return lambda server: [send(server) for _ in range(number)]


def _stream(server: RunningServer, load: Workload) -> object:
    return HttpPeer(server).streams(load).num_tokens


def _decide(server: RunningServer, load: Workload, texts: Sequence[str]) -> object:
    return HttpPeer(server).one_call(load, texts).tokens


def _post_all(server: RunningServer, bodies: Sequence[bytes]) -> list[str]:
    """The texts of completions that are asked for at once."""

    def post(body: bytes) -> Any:
        request = Request(f"{server.url}/v1/completions", body, {"content-type": "application/json"})
        with urlopen(request) as answer:
            return json.load(answer)["choices"][0]["text"]

    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(post, bodies))


def _commit(tree: Path) -> str:
    """As git names what is checked out there, or the folder's name."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return found.stdout.strip() or tree.name
