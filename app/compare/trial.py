"""Trial: one method under one seed, from choosing on validation to one measurement on test."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.compare.finding import Finding, find
from app.compare.latency import median_latency_s
from app.compare.method import Method
from app.compare.peak_memory import PeakMemory
from app.compare.setting import Setting
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.tuning.run.rows import spread

NUM_TIMED_REQUESTS = 20


@dataclass(frozen=True)
class Trial:
    """Everything but seconds and bytes of memory is the same whenever the seed is.

    Attributes:
        metric: name of the main metric.
        value: the main metric on test, 0 to 1.
        validation: what the choice was made by, on validation.
        metrics: all of them on test.
        num_parameters: trained ones.
        num_stored_bytes: of a task's files as they lie on disk.
        num_tries: candidates among which validation chose.
        chosen: what the chosen one is.
        num_steps: updates of a whole run; 0 where nothing is trained.
        best_step: updates done at the chosen state.
        tuning_s: seconds from the examples to the chosen state, all tries included.
        tuning_cpu_s: seconds of all the processor's threads meanwhile; other programs do not lengthen them.
        peak_memory_bytes: while tuning, on top of the loaded backbone; None where it cannot be told.
        memory_measure: how that was measured.
        latency_s: median seconds of a request through the engine; None where softswap does not serve the result.
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"method": self.method.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        return cls(**{**values, "method": Method(values["method"])})


def run_trial(backbone: Backbone, setting: Setting, method: Method, seed: int) -> Trial:
    """The resident backbone is only read. Raises InvalidInput, NumericalError, OutOfMemory."""
    fitted = setting.fitted(backbone)
    plan = fitted.plan
    with PeakMemory(backbone.device) as memory:
        began, began_cpu = time.monotonic(), time.process_time()
        found = find(backbone, fitted, method, seed)
        tuning_s, tuning_cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    measured = evaluate(
        found.backbone,
        ServedPrompt(
            found.prompt,
            plan.template,
            plan.labels,
            max_input_tokens=plan.config.max_input_tokens,
            max_new_tokens=plan.config.max_target_tokens,
        ),
        fitted.test,
    )
    latency_s = None
    if found.is_served:
        inputs = [example.input for example in spread(fitted.test, NUM_TIMED_REQUESTS)]
        latency_s = median_latency_s(backbone, found.prompt, plan, inputs)
    return Trial(
        method=method,
        seed=seed,
        backbone_fingerprint=backbone.fingerprint,
        num_backbone_parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        setting_digest=setting.digest(backbone.fingerprint),
        metric=measured.main_metric,
        value=measured.metrics[measured.main_metric],
        validation=found.validation,
        metrics=dict(measured.metrics),
        num_parameters=found.num_parameters,
        num_stored_bytes=_stored_bytes(found),
        num_tries=found.num_tries,
        chosen=found.chosen,
        num_steps=found.num_steps,
        best_step=found.best_step,
        tuning_s=tuning_s,
        tuning_cpu_s=tuning_cpu_s,
        peak_memory_bytes=memory.num_bytes,
        memory_measure=memory.measure,
        latency_s=latency_s,
    )


def _stored_bytes(found: Finding) -> int:
    with TemporaryDirectory() as folder:
        found.store(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
