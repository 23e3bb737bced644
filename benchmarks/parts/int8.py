"""What weights of 8 bits are worth: the same decode steps with them and without."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.telemetry import Metrics
from benchmarks.machine import Stopwatch
from benchmarks.parts.decode import Watch, decode, decode_workload
from benchmarks.report import Part, Say
from benchmarks.setting import Bench

BATCHES = (1, 8, 32, 64)


def measure_int8(bench: Bench, say: Say) -> Part:
    """Both engines in turns, each beginning in every other round."""
    plain = bench.backbone
    quantized = Backbone.load(bench.folder, dtype=bench.setting.dtype, device="cpu", quantize="int8")
    config = bench.config(len(bench.workload.prompts))
    name_to_engine = {"none": Engine(plain, config, Metrics()), "int8": Engine(quantized, config, Metrics())}
    rows = {}
    with Stopwatch() as stopwatch:
        for batch in BATCHES:
            say(f"decode steps of {batch}")
            rows[f"batch {batch}"] = _figures(_watch(bench, name_to_engine, batch))
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


def _watch(bench: Bench, name_to_engine: Mapping[str, Engine], batch: int) -> dict[str, Watch]:
    name_to_watch = {name: Watch() for name in name_to_engine}
    names = [*name_to_engine]
    for _ in range(bench.setting.repetitions):
        for name in names:
            decode(name_to_engine[name], decode_workload(bench, batch), name_to_watch[name])
        names.reverse()
    return name_to_watch


def _figures(name_to_watch: Mapping[str, Watch]) -> dict[str, float]:
    plain_s, int8_s = (statistics.median(name_to_watch[name].step_s) for name in ("none", "int8"))
    return {"step, ms": plain_s * 1e3, "step with int8, ms": int8_s * 1e3, "times as fast": plain_s / int8_s}


def _num_bytes(backbone: Backbone) -> int:
    return sum(parameter.nbytes for parameter in backbone.model.parameters())
