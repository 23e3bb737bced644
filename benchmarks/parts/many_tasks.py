"""Many tasks: one task against ten thousand, and what a registered task costs in memory."""

from __future__ import annotations

import ctypes
import gc
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt
from benchmarks.part import Part, Ratio, Say, speed
from benchmarks.rounds import Contender, Measurement, interleave
from benchmarks.server import publish_tasks
from benchmarks.setup import Setup
from benchmarks.workloads import Workload

ONE, UNIFORM, ZIPF = "one task", "uniform over all tasks", "Zipf over all tasks"
UNIFORM_STORED, ZIPF_STORED = "uniform, prefixes kept on disk", "Zipf, prefixes kept on disk"
CACHE_BYTES = 2**30
NUM_PUBLISHED = 1000
"""They stand for all: a registry's memory is proportional to its tasks, and each is written through to the disk."""


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """Engines of one size; a prefix that is not in memory is computed on demand or, in one of them, read from disk."""
    setting, num_tasks = setup.setting, setup.setting.num_registered
    say(f"making {num_tasks} prompts")
    all_tasks = setup.mixed(replace(setting.dimensions, num_requests=setting.num_many_requests, num_tasks=num_tasks))
    per_prefix = setup.kv_cache_bytes(setup.config(1)) - setup.kv_cache_bytes(setup.config(0))
    num_prefixes = min(CACHE_BYTES // per_prefix, num_tasks // 2)
    with TemporaryDirectory() as folder:
        found = _measure_throughput(setup, all_tasks, num_prefixes, Path(folder), say)
    say("publishing tasks, to weigh them")
    tensor_bytes, held_bytes = _registered_bytes(setup, all_tasks.prompts[:NUM_PUBLISHED])
    yield Part(
        name="many-tasks",
        question=f"Are {num_tasks} tasks as fast as one, and what do they weigh?",
        setting={
            "tasks": num_tasks,
            "prefixes_in_memory": num_prefixes,
            **setup.kv_cache_setting(setup.config(num_prefixes)),
        },
        contenders=found,
        figures={"a registered task": {"tensor_bytes": tensor_bytes, "resident_bytes": held_bytes}},
        ratios={f"{name} / {ONE}": speed(found, name, ONE, 0.9) for name in found if name != ONE}
        | {"memory of a registered task / its tensor + 4 KiB": Ratio(held_bytes / (tensor_bytes + 4096), at_most=1.0)},
    )


def _measure_throughput(
    setup: Setup, all_tasks: Workload, num_prefixes: int, folder: Path, say: Say
) -> dict[str, Measurement]:
    num_rounds = setup.setting.num_rounds
    # Zipf's law with exponent 1, cumulative
    popular = list(accumulate(1 / rank for rank in range(1, len(all_tasks.prompts) + 1)))
    uniform, zipf = (partial(_drawn, all_tasks, weights) for weights in (None, popular))
    say("storing the prefixes of the rounds to come, as if every task had been asked for before")
    store_prefixes(setup, folder, [drawn(number) for drawn in (uniform, zipf) for number in range(num_rounds)])
    say("warming up: caches full, of any tasks or of the popular ones, as hours of such requests leave them")
    one, one_task = setup.softswap(num_prefixes), all_tasks.with_task(0)
    one.run(one_task.one_token_each())
    contenders = [Contender(ONE, lambda _: one_task, one.begin)]
    any_tasks = random.Random("warm-up").sample(range(len(all_tasks.prompts)), num_prefixes)
    popular_tasks = range(num_prefixes - 1, -1, -1)
    for name, drawn, tasks, store in (
        (UNIFORM, uniform, any_tasks, None),
        (UNIFORM_STORED, uniform, any_tasks, folder),
        (ZIPF, zipf, popular_tasks, None),
        (ZIPF_STORED, zipf, popular_tasks, folder),
    ):
        peer = setup.softswap(num_prefixes, prefix_store=store)
        once_each = tuple(replace(all_tasks.requests[0], task=task) for task in tasks)
        peer.run(replace(all_tasks, requests=once_each).one_token_each())
        contenders.append(Contender(name, drawn, peer.begin))
    return interleave(contenders, num_rounds, say)


def store_prefixes(setup: Setup, folder: Path, workloads: Sequence[Workload]) -> None:
    """Keep the prefixes of these requests on the disk; what the system holds of the files in memory is dropped."""
    with closing(setup.softswap(1, prefix_store=folder)) as peer:
        for workload in workloads:
            for request in workload.requests:  # one by one, so that the store keeps up
                peer.run(replace(workload, requests=(request,)).one_token_each())
    for path in folder.rglob("*.kv"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drawn(workload: Workload, cumulative: list[float] | None, seed: int) -> Workload:
    """The same texts, their tasks drawn at random; uniformly without weights.

    Args: seed: as text, since Python draws the same for -1 and 1: a round's tasks would be those of the warm-up.
    """
    tasks = range(len(workload.prompts))
    chosen = random.Random(f"round {seed}").choices(tasks, cum_weights=cumulative, k=len(workload.requests))
    requests = tuple(replace(request, task=task) for request, task in zip(workload.requests, chosen, strict=True))
    return replace(workload, requests=requests)


def _registered_bytes(setup: Setup, prompts: tuple[TaskPrompt, ...]) -> tuple[float, float]:
    """(a prompt's tensor, what the process grew by for each task whose prompt was loaded)."""
    with TemporaryDirectory() as folder:
        publish_tasks(Path(folder), setup.backbone, prompts)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed would be taken again, and not be seen
        before = _resident_bytes()
        registry = Registry(FileStore(Path(folder)), setup.backbone, max_cache_bytes=2**40)
        loaded = [registry.prompt(registry.resolve(f"task{index}")) for index in range(len(prompts))]
        gc.collect()
        held = _resident_bytes() - before
        registry.close()
    rows = loaded[0].rows
    assert rows is not None
    return rows.nbytes, held / len(prompts)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
