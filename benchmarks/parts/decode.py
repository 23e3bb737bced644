"""How close a decode step comes to what the machine allows, and where the rest of it goes."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from app.engine.engine import Engine
from app.model.attention import AttentionBatch
from app.model.backbone import Backbone
from app.model.cpu.compiled_linear import compile_multiply
from app.model.cpu.compiler import CompilationError
from app.telemetry import Metrics
from benchmarks.machine import Stopwatch
from benchmarks.peers.softswap import SoftswapRun
from benchmarks.report import Part, Say
from benchmarks.setting import Bench
from benchmarks.workloads import Workload

BATCHES = (1, 8, 32)
NUM_STEPS = 24
NUM_SMOKE_STEPS = 8
NUM_BYTES_READ = 2**29
MATRIX_SIZE = 2048


@dataclass(frozen=True)
class Roofline:
    """What the machine can do (Williams et al. 2009), measured in the same run."""

    bytes_per_s: float
    flops_per_s: float

    @classmethod
    def here(cls, dtype: torch.dtype, size: float = 1.0) -> Roofline:
        """A sum over memory that no cache holds; the faster of torch's product of large matrices and the C code's."""
        numbers = torch.ones(int(size * NUM_BYTES_READ) // 4)
        width = max(16, int(size * MATRIX_SIZE))
        layer = nn.Linear(width, width, bias=False, dtype=dtype).requires_grad_(False)
        rows = torch.ones(width, width, dtype=dtype)
        ways = [layer, *_forwards([layer]).values()]
        return cls(
            bytes_per_s=numbers.nbytes / _median_s(numbers.sum),
            flops_per_s=2 * width**3 / min(_median_s(lambda way=way: way(rows)) for way in ways),  # type: ignore[misc]
        )

    def floor_s(self, num_bytes: float, num_flops: float) -> float:
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)


@dataclass
class _Watch:
    """Seconds of each decode step and of what it is made of, and the last batch."""

    step_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)
    kv_tokens: list[int] = field(default_factory=list)
    last: AttentionBatch | None = None


def measure_decode(bench: Bench, say: Say) -> Part:
    """W1's first requests in batches that all generate; what comes before the last text is computed is left out."""
    backbone, is_smoke = bench.backbone, bench.setting.shape.num_hidden_layers < 4
    roofline = Roofline.here(backbone.dtype, 0.05 if is_smoke else 1.0)
    engine = Engine(backbone, bench.config(len(bench.workload.prompts)), Metrics())
    rows, foreign = {}, 0.0
    for batch in BATCHES:
        say(f"decode steps of {batch}")
        with Stopwatch() as stopwatch:
            watch = _Watch()
            for _ in range(bench.setting.repetitions):
                _decode(
                    engine,
                    replace(bench.workload.turn(0, batch), num_new_tokens=NUM_SMOKE_STEPS if is_smoke else NUM_STEPS),
                    watch,
                )
            rows[f"batch {batch}"] = _figures(engine, roofline, watch, batch)
        foreign = max(foreign, stopwatch.foreign_cores or 0.0)
    return Part(
        name="decode",
        question="how close does a decode step come to what the machine allows?",
        setting={
            "memory_gb_per_s": round(roofline.bytes_per_s / 1e9, 1),
            "gflop_per_s": round(roofline.flops_per_s / 1e9, 1),
            "foreign_cores": round(foreign, 2),
        },
        name_to_figures=rows,
    )


def _decode(engine: Engine, workload: Workload, watch: _Watch) -> None:
    """Run a workload; note its steps in which every sequence adds a token."""
    runner: Any = engine.model_runner
    module: Any = sys.modules[Engine.__module__]
    run_batch, make_batch, read_out = runner.run, runner._attention_batch, module.ReadOut
    taken = {"run": 0.0, "read": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            result = work(*arguments, **keywords)
            taken[name] += time.perf_counter() - began
            return result

        return call

    def note(*arguments: Any) -> AttentionBatch:
        watch.last = make_batch(*arguments)
        return watch.last

    runner.run, runner._attention_batch, module.ReadOut = timed("run", run_batch), note, timed("read", read_out)
    try:
        run = SoftswapRun(engine, workload)
        while not run.is_finished:
            taken.update(run=0.0, read=0.0)
            began_s = run.wall_s
            run.step()
            assert watch.last is not None
            if watch.last.query_lens == [1] * len(workload.requests):
                watch.step_s.append(run.wall_s - began_s)
                watch.run_s.append(taken["run"])
                watch.read_s.append(taken["read"])
                watch.kv_tokens.append(sum(watch.last.kv_lens))
    finally:
        runner.run, runner._attention_batch, module.ReadOut = run_batch, make_batch, read_out


def _figures(engine: Engine, roofline: Roofline, watch: _Watch, batch: int) -> dict[str, float]:
    backbone = engine.backbone
    step_s, run_s, read_s = (statistics.median(each) for each in (watch.step_s, watch.run_s, watch.read_s))
    kv_tokens = statistics.median(watch.kv_tokens)
    num_weights = sum(layer.weight.numel() for layer in _linears(backbone))
    num_bytes = num_weights * backbone.dtype.itemsize + kv_tokens * backbone.kv_row_size * backbone.dtype.itemsize
    floor_s = roofline.floor_s(num_bytes, 2 * batch * num_weights)
    linears_s, attention_s = _linears_s(backbone, batch), _attention_s(engine, watch)
    return {
        "step, ms": step_s * 1e3,
        "floor, ms": floor_s * 1e3,
        "floor / step": floor_s / step_s,
        "linear layers": linears_s * 1e3,
        "attention": attention_s * 1e3,
        "else in the model": (run_s - linears_s - attention_s) * 1e3,
        "choosing tokens": read_s * 1e3,
        "engine": (step_s - run_s - read_s) * 1e3,
    }


def _linears(backbone: Backbone) -> list[nn.Linear]:
    return [module for module in backbone.model.modules() if isinstance(module, nn.Linear)]


def _forwards(layers: Iterable[nn.Linear]) -> dict[nn.Module, Callable[..., torch.Tensor]]:
    try:
        return {layer: compile_multiply(layer.weight.dtype)(layer) for layer in layers}
    except CompilationError:
        return {}


@torch.inference_mode()
def _linears_s(backbone: Backbone, num_rows: int) -> float:
    """All linear layers one after another, alone."""
    layers, forwards = _linears(backbone), _forwards(_linears(backbone))
    rows = {layer.in_features: torch.ones(num_rows, layer.in_features, dtype=backbone.dtype) for layer in layers}

    def compute() -> None:
        for layer in layers:
            forwards.get(layer, layer)(rows[layer.in_features])

    return _median_s(compute)


@torch.inference_mode()
def _attention_s(engine: Engine, watch: _Watch) -> float:
    """The last step's attention in all layers, alone."""
    batch, backbone = watch.last, engine.backbone
    assert batch is not None
    num_heads = backbone.model.config.get_text_config().num_attention_heads
    query = torch.ones(len(batch.slots), num_heads, backbone.head_dim, dtype=backbone.dtype)

    def compute() -> None:
        for keys, values in batch.kv_cache.layers:
            batch.attend(query, keys, values, batch, 0.1, None)

    return _median_s(compute)


def _median_s(work: Callable[[], object], num_tries: int = 7) -> float:
    """The first one warms up."""
    times = []
    for _ in range(num_tries):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
