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


def measure_cold_task(bench: Bench, say: Say) -> Part:
    """Reads the registry too: a cold task's prompt comes from the disk, is checked, and is computed."""
    repetitions = bench.setting.repetitions
    tasks = bench.mixed(
        replace(bench.setting.dimensions, num_requests=NUM_TASKS, num_tasks=NUM_TASKS * repetitions, num_new_tokens=1)
    )
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        publish_tasks(Path(folder), bench.backbone, tasks.prompts)
        registry = Registry(FileStore(Path(folder)), bench.backbone, max_cache_bytes=LARGER_CACHE_BYTES)
        cold, warm = bench.softswap(len(tasks.prompts)), bench.softswap(NUM_TASKS)
        say("storing all prefixes, as if every task had been asked for before a restart")
        store = Path(stack.enter_context(TemporaryDirectory()))
        store_prefixes(bench, store, [_shifted(tasks, number) for number in range(repetitions)])
        kept = bench.softswap(len(tasks.prompts), prefix_store=store)
        for peer in (cold, kept):
            peer.run(tasks.every(NUM_TASKS).without_prompts())
        _one_by_one(warm, registry, tasks)
        found = interleave(
            [
                Contender("warm", lambda _: tasks, lambda given: _one_by_one(warm, registry, given)),
                Contender(
                    "cold", lambda number: _shifted(tasks, number), lambda given: _one_by_one(cold, registry, given)
                ),
                Contender(
                    "cold, prefix kept on disk",
                    lambda number: _shifted(tasks, number),
                    lambda given: _one_by_one(kept, registry, given),
                ),
            ],
            repetitions,
            say,
        )
        registry.close()
    return Part(
        name="cold-task",
        question="how long does the first request of a task wait longer than the others?",
        setting={"requests": NUM_TASKS, "one_at_a_time": True},
        name_to_measurement=found,
        ratios=(
            time("first token, cold / warm", found, "cold", "warm", at_most=1.5),
            time("first token, cold with its prefix kept on disk / warm", found, "cold, prefix kept on disk", "warm"),
        ),
    )


def _shifted(tasks: Workload, number: int) -> Workload:
    """The same texts to tasks that no round before has asked."""
    requests = tuple(replace(request, task=number * NUM_TASKS + index) for index, request in enumerate(tasks.requests))
    return replace(tasks, requests=requests)


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
