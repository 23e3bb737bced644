"""What a solution costs: the memory that tuning needs, and how long a served prompt's answer takes."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from contextlib import aclosing
from pathlib import Path

import torch

from app.engine.admission import EngineRequest
from app.engine.async_engine import AsyncEngine
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.model.layout import continue_prompt, encode_labels
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from app.tuning.plan import TuningPlan

MAX_NUM_SEQS = 16
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CUDA_MEASURE = "torch.cuda.max_memory_allocated, less what was allocated before"
CPU_MEASURE = "peak resident set of a process of its own (VmHWM), less its resident set before"
NO_MEASURE = "not measured: this system does not say"
RESET_PEAK = "5"
"""Clears the high-water mark of the resident set, see proc_pid_clear_refs(5)."""


class PeakMemory:
    """A `with` block's peak beyond what was in use before it. On CPU it counts the whole process, so nothing else may
    run in it.

    Attributes:
        num_bytes: peak less what was in use at entry; None if the system does not say.
        measure: how it was measured, for a reader.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self.num_bytes: int | None = None
        self.measure = CPU_MEASURE if os.access(CLEAR_REFS, os.W_OK) else NO_MEASURE
        if device.type == "cuda":
            self.measure = CUDA_MEASURE

    def __enter__(self) -> PeakMemory:
        if self.measure == CUDA_MEASURE:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif self.measure == CPU_MEASURE:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._before = _read_status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.measure == CUDA_MEASURE:
            self.num_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
        elif self.measure == CPU_MEASURE:
            self.num_bytes = max(0, _read_status("VmHWM") - self._before)


def _read_status(name: str) -> int:
    """Bytes of a line of /proc/self/status, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def median_latency_s(backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, inputs: list[str]) -> float:
    """Median seconds from a text to its label (or to the end of its answer), HTTP not included.

    Requests run one at a time through the engine, as a server computes them. An untimed one before them
    pays for the prompt's prefix and for whatever happens only once.
    """
    engine = AsyncEngine(
        Engine(backbone, EngineConfig.sized_for(backbone, max_num_seqs=MAX_NUM_SEQS, prefix_caching=False))
    )
    engine.start()
    try:
        return asyncio.run(_time_all(engine, backbone, prompt, plan, inputs))
    finally:
        engine.close()


async def _time_all(
    engine: AsyncEngine, backbone: Backbone, prompt: TaskPrompt | None, plan: TuningPlan, inputs: list[str]
) -> float:
    label_ids = encode_labels(backbone, plan.template, plan.labels)
    scoring_plan = engine.plan_scoring(label_ids) if label_ids else None
    params = SamplingParams(temperature=0.0, max_tokens=plan.config.max_target_tokens)
    times_s = []
    for text in (inputs[0], *inputs):
        began = time.perf_counter()
        encoded = plan.template.encode_within(backbone.tokenizer, text, plan.config.max_input_tokens)
        token_ids = continue_prompt(backbone.tokenizer, prompt, encoded)
        if scoring_plan is not None:
            await engine.score(EngineRequest(token_ids=token_ids, prompt=prompt), scoring_plan)
        else:
            request = EngineRequest(token_ids=token_ids, prompt=prompt, params=params)
            async with aclosing(engine.generate(request)) as deltas:
                async for _ in deltas:
                    pass
        times_s.append(time.perf_counter() - began)
    return statistics.median(times_s[1:])
