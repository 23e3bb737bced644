"""Trial: one method under one seed, from choosing on validation to one measurement on test.

Summary: what all trials of one method say together.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scipy.stats import t as student_t

from app.compare.cost import PeakMemory, median_latency_s
from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.solution import BestChoice, Solution, evaluate_on, solve
from app.measure.metrics import wilson_interval
from app.model.backbone import Backbone
from app.tuning.run.rows import spread

LEVEL = 0.95
NUM_TIMED_REQUESTS = 20


@dataclass(frozen=True, kw_only=True)
class Trial(BestChoice):
    """Everything but seconds and bytes of memory depends on the seed alone.

    Attributes:
        metric: name of the main metric.
        value: the main metric on test, 0 to 1.
        metrics: all of them on test.
        num_stored_bytes: of a task's files as they lie on disk.
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
    metrics: dict[str, float]
    num_stored_bytes: int
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
        **{each.name: getattr(found, each.name) for each in fields(BestChoice)},
    )


def _stored_bytes(found: Solution) -> int:
    with TemporaryDirectory() as folder:
        found.store(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@dataclass(frozen=True)
class Interval:
    """Of 95 % confidence.

    Attributes:
        low, high: None if nothing was repeated.
        kind: what was repeated, for a reader.
    """

    low: float | None
    high: float | None
    kind: str

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Interval:
        """Of one seed, Wilson's interval of a share: what another test split would give under the same seed."""
        first = trials[0]
        if len(trials) > 1:
            return cls.over_seeds([trial.value for trial in trials])
        if first.metric == "accuracy":
            num_examples = int(first.metrics["num_examples"])
            return cls(*wilson_interval(first.value, num_examples), f"Wilson over {num_examples} examples")
        return cls(None, None, "none: one seed, and the metric is not a share")

    @classmethod
    def over_seeds(cls, values: Sequence[float]) -> Interval:
        """Student's t interval of the mean, clipped to [0, 1]: what another seed would give on the same test split."""
        mean, num = statistics.fmean(values), len(values)
        reach = student_t.ppf((1 + LEVEL) / 2, num - 1) * statistics.stdev(values) / math.sqrt(num)
        return cls(max(0.0, mean - reach), min(1.0, mean + reach), f"t over {num} seeds")


@dataclass(frozen=True)
class Summary:
    """Attributes:
    value: mean of the main metric on test over the trials.
    interval: around it.
    tuning_s, tuning_cpu_s: mean of the trials.
    peak_memory_bytes: the largest of the trials.
    latency_s: median of the trials'.

    Sizes are those of the first trial: they do not depend on the seed, up to a few bytes of the files.
    """

    method: Method
    metric: str
    value: float
    interval: Interval
    seeds: tuple[int, ...]
    num_parameters: int
    num_stored_bytes: int
    num_tries: int
    tuning_s: float
    tuning_cpu_s: float
    peak_memory_bytes: int | None
    latency_s: float | None

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Summary:
        """Args: trials: of one method on one backbone in one setting, one or more."""
        first = trials[0]
        peaks = [trial.peak_memory_bytes for trial in trials if trial.peak_memory_bytes is not None]
        latencies = [trial.latency_s for trial in trials if trial.latency_s is not None]
        return cls(
            method=first.method,
            metric=first.metric,
            value=statistics.fmean(trial.value for trial in trials),
            interval=Interval.of(trials),
            seeds=tuple(trial.seed for trial in trials),
            num_parameters=first.num_parameters,
            num_stored_bytes=first.num_stored_bytes,
            num_tries=first.num_tries,
            tuning_s=statistics.fmean(trial.tuning_s for trial in trials),
            tuning_cpu_s=statistics.fmean(trial.tuning_cpu_s for trial in trials),
            peak_memory_bytes=max(peaks, default=None),
            latency_s=statistics.median(latencies) if latencies else None,
        )


def summarize(trials: Sequence[Trial]) -> list[Summary]:
    """One summary for each method that was tried, in the methods' order."""
    by_method = {method: [trial for trial in trials if trial.method is method] for method in Method}
    return [Summary.of(group) for group in by_method.values() if group]
