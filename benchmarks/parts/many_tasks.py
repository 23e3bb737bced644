"""W4: one task against many, and what a registered task costs in memory."""

from __future__ import annotations

import ctypes
import gc
import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from benchmarks.parts.ratios import speed
from benchmarks.peers.protocol import resident_bytes
from benchmarks.report import Part, Ratio, Say
from benchmarks.rounds import SteppedContender, interleave_steps
from benchmarks.server import publish_tasks
from benchmarks.setting import Bench
from benchmarks.workloads import Workload

CACHE_BYTES = 2**30
NUM_PUBLISHED = 1000
"""So many stand for all: a registry's memory is proportional to its tasks, and each is written through to the disk."""


def measure_many_tasks(bench: Bench, say: Say) -> Part:
    """Engines of one size; prefixes that were dropped, or never computed, are computed on demand."""
    setting, count = bench.setting, bench.setting.num_many_requests
    num_tasks = setting.num_registered
    say(f"making {num_tasks} prompts")
    all_tasks = bench.mixed(replace(setting.dimensions, num_requests=count, num_tasks=num_tasks))
    per_prefix = bench.kv_cache_bytes(bench.config(1)) - bench.kv_cache_bytes(bench.config(0))
    num_prefixes = min(CACHE_BYTES // per_prefix, num_tasks // 2)
    one, uniform, zipf = (bench.softswap(num_prefixes) for _ in range(3))
    popular = _zipf_weights(num_tasks)
    say("warming up: the popular tasks' prefixes, as hours of such requests leave them")
    one.run(all_tasks.of_one_task().one_token_each())
    few = replace(all_tasks, requests=all_tasks.requests * 2)
    uniform.run(_drawn(few, None, seed=-1).one_token_each())
    first = [replace(all_tasks.requests[0], task=rank) for rank in reversed(range(num_prefixes))]
    zipf.run(replace(all_tasks, requests=tuple(first)).one_token_each())
    found = interleave_steps(
        [
            SteppedContender("one task", lambda _: all_tasks.of_one_task(), one.start),
            SteppedContender(
                "uniform over all tasks", lambda number: _drawn(all_tasks, None, seed=number), uniform.start
            ),
            SteppedContender("Zipf over all tasks", lambda number: _drawn(all_tasks, popular, seed=number), zipf.start),
        ],
        setting.repetitions,
        say,
    )
    say("publishing tasks, to weigh them")
    tensor_bytes, held_bytes = _registered_bytes(bench, all_tasks.prompts[:NUM_PUBLISHED])
    return Part(
        name="many-tasks",
        question=f"are {num_tasks} tasks as fast as one, and what do they weigh?",
        setting={"tasks": num_tasks, "prefixes_in_memory": num_prefixes, **bench.kv_cache_setting(one.config)},
        name_to_measurement=found,
        name_to_figures={"a registered task": {"tensor_bytes": tensor_bytes, "resident_bytes": held_bytes}},
        ratios=(
            speed("uniform / one task", found, "uniform over all tasks", "one task", at_least=0.9),
            speed("Zipf / one task", found, "Zipf over all tasks", "one task", at_least=0.9),
            Ratio("memory of a registered task / its tensor + 4 KiB", held_bytes / (tensor_bytes + 4096), at_most=1.0),
        ),
    )


def _zipf_weights(count: int) -> list[float]:
    """Cumulative weights 1/rank (Zipf's law with exponent 1)."""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def _drawn(workload: Workload, cumulative: list[float] | None, seed: int) -> Workload:
    """The same texts, their tasks drawn at random; uniformly where there are no weights.

    Args: seed: as text, since Python draws the same for -1 and 1: a round's tasks would be those of the warm-up.
    """
    tasks = range(len(workload.prompts))
    chosen = random.Random(f"round {seed}").choices(tasks, cum_weights=cumulative, k=len(workload.requests))
    requests = tuple(replace(request, task=task) for request, task in zip(workload.requests, chosen, strict=True))
    return replace(workload, requests=requests)


def _registered_bytes(bench: Bench, prompts: tuple[TaskPrompt, ...]) -> tuple[float, float]:
    """(a prompt's tensor, what the process grew by for each task whose prompt was loaded)."""
    with TemporaryDirectory() as folder:
        publish_tasks(Path(folder), bench.backbone, prompts)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed would be taken again, and not be seen
        before = resident_bytes()
        registry = Registry(FileStore(Path(folder)), bench.backbone, max_cache_bytes=2**40)
        loaded = [registry.prompt(registry.resolve(f"task{index}")) for index in range(len(prompts))]
        gc.collect()
        held = resident_bytes() - before
        registry.close()
    rows = loaded[0].rows
    assert isinstance(rows, torch.Tensor)
    return rows.numel() * rows.element_size(), held / len(prompts)
