"""W5: the first token of a task that was never loaded, beside that of one in use."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from app.registry.registry import Registry
from app.registry.store import FileStore
from benchmarks.parts.many_tasks import store_prefixes
from benchmarks.parts.ratios import time
from benchmarks.peers.outcome import Outcome
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.report import Part, Say
from benchmarks.rounds import Contender, interleave
from benchmarks.server import publish_tasks
from benchmarks.setting import Bench
from benchmarks.workloads import Workload

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
        folder = Path(stack.enter_context(TemporaryDirectory()))
        publish_tasks(folder, bench.backbone, tasks.prompts)

        def read_registry() -> Registry:
            """One of its own for each, or the first would read the prompts for the others."""
            registry = Registry(FileStore(folder), bench.backbone, max_cache_bytes=LARGER_CACHE_BYTES)
            stack.callback(registry.close)
            return registry

        say("storing all prefixes, as if every task had been asked for before a restart")
        store = Path(stack.enter_context(TemporaryDirectory()))
        store_prefixes(bench, store, [_shifted(tasks, number) for number in range(repetitions)])
        name_to_peer = {
            WARM: bench.softswap(NUM_TASKS),
            COLD: bench.softswap(len(tasks.prompts)),
            KEPT: bench.softswap(len(tasks.prompts), prefix_store=store),
            WARMED: bench.softswap(len(tasks.prompts)),
        }
        name_to_registry = {name: read_registry() for name in name_to_peer}
        for name in (COLD, KEPT, WARMED):
            name_to_peer[name].run(tasks.every(NUM_TASKS).without_prompts())
        _one_by_one(name_to_peer[WARM], name_to_registry[WARM], tasks)
        for number in range(repetitions):
            _warm(name_to_peer[WARMED], name_to_registry[WARMED], _shifted(tasks, number))

        def contender(name: str) -> Contender:
            peer, registry = name_to_peer[name], name_to_registry[name]
            return Contender(
                name,
                lambda number: tasks if name == WARM else _shifted(tasks, number),
                lambda given: _one_by_one(peer, registry, given),
            )

        found = interleave([contender(name) for name in name_to_peer], repetitions, say)
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


def _shifted(tasks: Workload, number: int) -> Workload:
    """The same texts to tasks that no round before has asked."""
    requests = tuple(replace(request, task=number * NUM_TASKS + index) for index, request in enumerate(tasks.requests))
    return replace(tasks, requests=requests)


def _warm(peer: SoftswapPeer, registry: Registry, tasks: Workload) -> None:
    """What `PromptWarmer` does."""
    for request in tasks.requests:
        peer.warm(registry.prompt(registry.resolve(f"task{request.task}"), may_displace=False))


def _one_by_one(peer: SoftswapPeer, registry: Registry, tasks: Workload) -> Outcome:
    outcomes = []
    for request in tasks.requests:
        prompt = registry.prompt(registry.resolve(f"task{request.task}"))
        alone = replace(tasks, requests=(replace(request, task=0),), prompts=(prompt,))
        outcomes.append(peer.run(alone))
    return Outcome.of(
        tokens=tuple(outcome.tokens[0] for outcome in outcomes),
        first_token_s=tuple(outcome.first_token_s[0] for outcome in outcomes),
        num_cached_tokens=sum(outcome.num_cached_tokens for outcome in outcomes),
    )
