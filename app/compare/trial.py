"""Trial: one method under one seed, from choosing on validation to one measurement on test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.compare.cost import PeakMemory, median_latency_s
from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.solution import Solution, evaluate_on, solve
from app.model.backbone import Backbone
from app.tuning.run.rows import spread

NUM_TIMED_REQUESTS = 20
_FOUND = ("validation", "num_parameters", "num_tries", "chosen", "num_steps", "best_step")
"""What a trial says in its solution's words."""


@dataclass(frozen=True)
class Trial:
    """Everything but seconds and bytes of memory depends on the seed alone.

    Attributes:
        metric: name of the main metric.
        value: the main metric on test, 0 to 1.
        validation: what the choice was made by, on validation.
        metrics: all of them on test.
        num_parameters: trained ones.
        num_stored_bytes: of a task's files as they lie on disk.
        num_tries: candidates among which validation chose.
        chosen: what the chosen one is.
        num_steps: updates of a whole run; 0 if nothing is trained.
        best_step: updates done at the chosen state.
        tuning_s: seconds from the examples to the chosen state, all tries included.
        tuning_cpu_s: CPU seconds of all threads in that time; other programs do not lengthen them.
        peak_memory_bytes: while tuning, on top of the loaded backbone; None if it cannot be measured.
        memory_measure: how that was measured.
        latency_s: median seconds of a request through the engine; None if softswap does not serve the result.
    """

    method: Method
    seed: int
    backbone_fingerprint: str
    num_backbone_parameters: int
    setting_digest: str
    metric: str
    value: float
    validation: float
    metrics: dict[str, float]
    num_parameters: int
    num_stored_bytes: int
    num_tries: int
    chosen: dict[str, Any]
    num_steps: int
    best_step: int
    tuning_s: float
    tuning_cpu_s: float
    peak_memory_bytes: int | None
    memory_measure: str
    latency_s: float | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        return cls(**{**values, "method": Method(values["method"])})


def run_trial(backbone: Backbone, setting: Setting, method: Method, seed: int) -> Trial:
    """The resident backbone is only read. Raises InvalidInput, NumericalError, OutOfMemory."""
    fitted = setting.fitted(backbone)
    with PeakMemory(backbone.device) as memory:
        began, began_cpu = time.monotonic(), time.process_time()
        found = solve(backbone, fitted, method, seed)
        tuning_s, tuning_cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    measured = evaluate_on(found.backbone, found.prompt, fitted.plan, fitted.test)
    timed = [example.input for example in spread(fitted.test, NUM_TIMED_REQUESTS)]
    is_served = found.backbone is backbone
    return Trial(
        method=method,
        seed=seed,
        backbone_fingerprint=backbone.fingerprint,
        num_backbone_parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        setting_digest=setting.digest(backbone.fingerprint),
        metric=measured.main_metric,
        value=measured.metrics[measured.main_metric],
        metrics=dict(measured.metrics),
        num_stored_bytes=_stored_bytes(found),
        tuning_s=tuning_s,
        tuning_cpu_s=tuning_cpu_s,
        peak_memory_bytes=memory.num_bytes,
        memory_measure=memory.measure,
        latency_s=median_latency_s(backbone, found.prompt, fitted.plan, timed) if is_served else None,
        **{name: getattr(found, name) for name in _FOUND},
    )


def _stored_bytes(found: Solution) -> int:
    with TemporaryDirectory() as folder:
        found.store(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
