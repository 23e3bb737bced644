"""int8: what weights of 8 bits are worth, by the same decode steps with them and without, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.telemetry import Metrics
from benchmarks.machine import Stopwatch
from benchmarks.part import Part, Say
from benchmarks.parts.decode import decode_steps
from benchmarks.setup import Setup

BATCHES = (1, 8, 32, 64)


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """The mixed load's first requests in batches that all generate."""
    setting = setup.setting
    plain = setup.backbone
    quantized = Backbone.load(setup.folder, dtype=setting.dtype, device="cpu", quantize="int8")
    config = setup.config(len(setup.workload.prompts))
    engines = {each.quantize: Engine(each, config, Metrics()) for each in (plain, quantized)}
    figures = {}
    with Stopwatch() as stopwatch:
        for batch in BATCHES:
            say(f"decode steps of {batch}")
            step_s = decode_steps(engines, setup.workload.first(batch), setting.num_rounds)
            plain_s, int8_s = (statistics.median(step_s[name]) for name in ("none", "int8"))
            figures[f"batch {batch}"] = {
                "step, ms": plain_s * 1e3,
                "step with int8, ms": int8_s * 1e3,
                "times as fast": plain_s / int8_s,
            }
    yield Part(
        name="int8",
        question="How much sooner does a decode step end with weights of 8 bits?",
        setting={
            "weights_mb": round(_num_bytes(plain) / 1e6),
            "weights_mb_with_int8": round(_num_bytes(quantized) / 1e6),
        },
        figures=figures,
        foreign_cores=stopwatch.foreign_cores,
    )


def _num_bytes(backbone: Backbone) -> int:
    return sum(parameter.nbytes for parameter in backbone.model.parameters())
