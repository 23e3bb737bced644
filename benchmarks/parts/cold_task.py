"""W5: the first token of a task that was never loaded, beside that of one in use."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from app.registry.registry import Registry
from app.registry.stores.store import FileStore
from app.task_prompt import TaskPrompt
from benchmarks.parts.many_tasks import store_prefixes
from benchmarks.parts.ratios import time
from benchmarks.peers.outcome import Outcome
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.report import Part, Say
from benchmarks.rounds import Contender, interleave
from benchmarks.server import publish_tasks
from benchmarks.setting import Bench
from benchmarks.workloads import Request, Workload

NUM_TASKS = 16
"""Of each round, one request after the other on an idle engine."""
LARGER_CACHE_BYTES = 2**30
WARM, COLD = "warm", "cold"
KEPT, WARMED = "cold, prefix kept on disk", "never asked for, computed while no request ran"


def measure_cold_task(bench: Bench, say: Say) -> Part:
    """Reads the registry too: a cold task's prompt comes from the disk, is checked, and is computed."""
    repetitions = bench.setting.repetitions
    tasks = bench.mixed(
        replace(bench.setting.dimensions, num_requests=NUM_TASKS, num_tasks=NUM_TASKS * repetitions, num_new_tokens=1)
    )
    with ExitStack() as stack:
        folder, store = (Path(stack.enter_context(TemporaryDirectory())) for _ in range(2))
        publish_tasks(folder, bench.backbone, tasks.prompts)
        # a registry for each, or the first would read the prompts for the others
        registries = [Registry(FileStore(folder), bench.backbone, max_cache_bytes=LARGER_CACHE_BYTES) for _ in range(4)]
        for registry in registries:
            stack.callback(registry.close)
        say("storing all prefixes, as if every task had been asked for before a restart")
        store_prefixes(bench, store, [_shifted(tasks, number) for number in range(repetitions)])
        servers = [
            _Server(name, peer, registry)
            for (name, peer), registry in zip(_peers(bench, tasks, store).items(), registries, strict=True)
        ]
        say("warming up")
        for server in servers:
            server.prepare(tasks, repetitions)
        found = interleave([server.contender(tasks) for server in servers], repetitions, say)
    return Part(
        name="cold-task",
        question="how long does the first request of a task wait longer than the others?",
        setting={"requests": NUM_TASKS, "one_at_a_time": True},
        name_to_measurement=found,
        ratios=(
            time("first token, published while no request ran / warm", found, WARMED, WARM, at_most=1.5),
            time("first token, cold / warm", found, COLD, WARM, at_most=1.5),
            time("first token, cold with its prefix kept on disk / warm", found, KEPT, WARM, at_most=1.5),
        ),
    )


def _peers(bench: Bench, tasks: Workload, store: Path) -> dict[str, SoftswapPeer]:
    num_tasks = len(tasks.prompts)
    return {
        WARM: bench.softswap(NUM_TASKS),
        COLD: bench.softswap(num_tasks),
        KEPT: bench.softswap(num_tasks, prefix_store=store),
        WARMED: bench.softswap(num_tasks),
    }


@dataclass(frozen=True)
class _Server:
    """An engine and a registry, as a server has them."""

    name: str
    peer: SoftswapPeer
    registry: Registry

    def prepare(self, tasks: Workload, repetitions: int) -> None:
        """Run once what every server has run, and what the name says was done before."""
        if self.name == WARM:
            self.ask(tasks)
            return
        self.peer.run(tasks.every(NUM_TASKS).without_prompts())
        if self.name == WARMED:
            for number in range(repetitions):
                for request in _shifted(tasks, number).requests:  # what `PromptWarmer` does
                    self.peer.warm(self._prompt(request, may_displace=False))

    def contender(self, tasks: Workload) -> Contender:
        return Contender(self.name, lambda number: tasks if self.name == WARM else _shifted(tasks, number), self.ask)

    def ask(self, tasks: Workload) -> Outcome:
        """One request after the other."""
        outcomes = []
        for request in tasks.requests:
            prompt = self._prompt(request)
            outcomes.append(self.peer.run(replace(tasks, requests=(replace(request, task=0),), prompts=(prompt,))))
        return Outcome.of(
            tokens=tuple(outcome.tokens[0] for outcome in outcomes),
            first_token_s=tuple(outcome.first_token_s[0] for outcome in outcomes),
            num_cached_tokens=sum(outcome.num_cached_tokens for outcome in outcomes),
        )

    def _prompt(self, request: Request, *, may_displace: bool = True) -> TaskPrompt:
        return self.registry.prompt(self.registry.resolve(f"task{request.task}"), may_displace=may_displace)


def _shifted(tasks: Workload, number: int) -> Workload:
    """The same texts to tasks that no round before has asked."""
    requests = tuple(replace(request, task=number * NUM_TASKS + index) for index, request in enumerate(tasks.requests))
    return replace(tasks, requests=requests)
