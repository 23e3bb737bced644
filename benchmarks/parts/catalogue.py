"""All parts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.parts.arrivals import measure_arrivals
from benchmarks.parts.cold_task import measure_cold_task
from benchmarks.parts.decisions import measure_decisions
from benchmarks.parts.decode import measure_decode
from benchmarks.parts.http_cost import measure_http_cost
from benchmarks.parts.int8 import measure_int8
from benchmarks.parts.many_tasks import measure_many_tasks
from benchmarks.parts.peers import measure_peers
from benchmarks.parts.prompt_length import measure_prompt_length
from benchmarks.parts.start_up import measure_start_up
from benchmarks.parts.trees import measure_trees
from benchmarks.report import Part, Say
from benchmarks.setting import Bench

NAME_TO_PART: Mapping[str, Callable[[Bench, Say], Part]] = {
    "peers": measure_peers,
    "decisions": measure_decisions,
    "arrivals": measure_arrivals,
    "many-tasks": measure_many_tasks,
    "cold-task": measure_cold_task,
    "prompt-length": measure_prompt_length,
    "start-up": measure_start_up,
    "http": measure_http_cost,
    "decode": measure_decode,
    "int8": measure_int8,
    "trees": measure_trees,
}
