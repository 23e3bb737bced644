"""Cold task: the first token of a task that was never loaded, against that of one in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from benchmarks.part import Part, Say, duration
from benchmarks.parts.many_tasks import store_prefixes
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.server import publish_tasks
from benchmarks.setup import Setup
from benchmarks.workloads import Outcome, Request, Workload

NUM_TASKS = 16
"""Of each round, one request after the other on an idle engine."""
LARGER_CACHE_BYTES = 2**30
WARM, COLD = "warm", "cold"
KEPT, WARMED = "cold, prefix kept on disk", "never asked for, computed while no request ran"


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """Reads the registry too: a cold task's prompt comes from the disk, is checked, and is computed."""
    setting, num_rounds = setup.setting, setup.setting.num_rounds
    num_tasks = NUM_TASKS * num_rounds
    tasks = setup.mixed(replace(setting.dimensions, num_requests=NUM_TASKS, num_tasks=num_tasks, num_new_tokens=1))
    with ExitStack() as stack:
        folder, store = (Path(stack.enter_context(TemporaryDirectory())) for _ in range(2))
        publish_tasks(folder, setup.backbone, tasks.prompts)
        say("storing all prefixes, as if every task had been asked for before a restart")
        store_prefixes(setup, store, [_shifted(tasks, number) for number in range(num_rounds)])
        servers = []
        say("warming up")
        for name in (WARM, COLD, KEPT, WARMED):
            num_prefixes, kept = NUM_TASKS if name == WARM else num_tasks, store if name == KEPT else None
            # a registry for each, or the first would read the prompts for the others
            registry = Registry(FileStore(folder), setup.backbone, max_cache_bytes=LARGER_CACHE_BYTES)
            stack.callback(registry.close)
            servers.append(_Server(name, setup.softswap(num_prefixes, prefix_store=kept), registry))
            servers[-1].prepare(tasks, num_rounds)
        found = interleave([server.contender(tasks) for server in servers], num_rounds, say)
    yield Part(
        name="cold-task",
        question="How long does the first request of a task wait longer than the others?",
        setting={"requests": NUM_TASKS, "one_at_a_time": True},
        contenders=found,
        ratios={
            "first token, published while no request ran / warm": duration(found, WARMED, WARM, 1.5),
            "first token, cold / warm": duration(found, COLD, WARM, 1.5),
            "first token, cold with its prefix kept on disk / warm": duration(found, KEPT, WARM, 1.5),
        },
    )


@dataclass(frozen=True)
class _Server:
    """An engine and a registry, as a server has them."""

    name: str
    peer: SoftswapPeer
    registry: Registry

    def prepare(self, tasks: Workload, num_rounds: int) -> None:
        """Run once what every server has run, and what the name says was done before."""
        if self.name == WARM:
            self.ask(tasks)
            return
        self.peer.run(tasks.every(NUM_TASKS).with_task(None))
        if self.name == WARMED:
            for number in range(num_rounds):
                for request in _shifted(tasks, number).requests:  # what `PromptWarmer` does
                    self.peer.warm(self._prompt(request, may_displace=False))

    def contender(self, tasks: Workload) -> Contender:
        shift = partial(_shifted, tasks)
        return Contender(self.name, (lambda _: tasks) if self.name == WARM else shift, whole(self.ask))

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
