"""What weights of 8 bits are worth: the same decode steps with them and without, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.telemetry import Metrics
from benchmarks.machine import Stopwatch
from benchmarks.peers.softswap import SoftswapRun
from benchmarks.report import Part, Say
from benchmarks.setting import Bench
from benchmarks.workloads import Workload

BATCHES = (1, 8, 32, 64)
MIN_NEW_TOKENS = 16  # so that the first sequences are not done before the last ones begin


def measure_int8(bench: Bench, say: Say) -> Part:
    """W1's first requests in batches that all generate; what comes before the last text is computed is left out."""
    plain = bench.backbone
    quantized = Backbone.load(bench.folder, dtype=bench.setting.dtype, device="cpu", quantize="int8")
    config = bench.config(len(bench.workload.prompts))
    name_to_engine = {each.quantize: Engine(each, config, Metrics()) for each in (plain, quantized)}
    rows = {}
    with Stopwatch() as stopwatch:
        for batch in BATCHES:
            say(f"decode steps of {batch}")
            workload = bench.workload.turn(0, batch)
            workload = replace(workload, num_new_tokens=max(MIN_NEW_TOKENS, workload.num_new_tokens))
            rows[f"batch {batch}"] = _figures(name_to_engine, workload, bench.setting.repetitions)
    return Part(
        name="int8",
        question="how much sooner does a decode step end with weights of 8 bits?",
        setting={
            "weights_mb": round(_num_bytes(plain) / 1e6),
            "weights_mb_with_int8": round(_num_bytes(quantized) / 1e6),
            "foreign_cores": round(stopwatch.foreign_cores or 0.0, 2),
        },
        name_to_figures=rows,
    )


def _figures(name_to_engine: Mapping[str, Engine], workload: Workload, repetitions: int) -> dict[str, float]:
    name_to_step_s: dict[str, list[float]] = {name: [] for name in name_to_engine}
    for _ in range(repetitions):
        _take_turns(name_to_engine, workload, name_to_step_s)
    plain_s, int8_s = (statistics.median(name_to_step_s[name]) for name in ("none", "int8"))
    return {"step, ms": plain_s * 1e3, "step with int8, ms": int8_s * 1e3, "times as fast": plain_s / int8_s}


def _take_turns(
    name_to_engine: Mapping[str, Engine], workload: Workload, name_to_step_s: Mapping[str, list[float]]
) -> None:
    """Note the steps in which every sequence adds a token; each turn begins with the other engine."""
    runs = [(name, SoftswapRun(engine, workload)) for name, engine in name_to_engine.items()]
    while not all(run.is_finished for _, run in runs):
        for name, run in runs:
            began_s = run.wall_s
            if run.step() == len(workload.requests):
                name_to_step_s[name].append(run.wall_s - began_s)
        runs.reverse()


def _num_bytes(backbone: Backbone) -> int:
    return sum(parameter.nbytes for parameter in backbone.model.parameters())
