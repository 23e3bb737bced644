"""Summary: what all trials of one method say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from app.compare.method import Method
from app.compare.trial import Trial
from app.measure.metrics import wilson_interval

LEVEL = 0.95


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
    def over_seeds(cls, values: Sequence[float]) -> Interval:
        """Student's t interval of the mean, clipped to [0, 1]: what another seed would give on the same test split."""
        mean, num = statistics.fmean(values), len(values)
        reach = student_t.ppf((1 + LEVEL) / 2, num - 1) * statistics.stdev(values) / math.sqrt(num)
        return cls(max(0.0, mean - reach), min(1.0, mean + reach), f"t over {num} seeds")

    @classmethod
    def over_examples(cls, share: float, num_examples: int) -> Interval:
        """Wilson's interval of a share: what another test split would give under the same seed."""
        low, high = wilson_interval(share, num_examples)
        return cls(low, high, f"Wilson over {num_examples} examples")


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
        first, values = trials[0], [trial.value for trial in trials]
        peaks = [trial.peak_memory_bytes for trial in trials if trial.peak_memory_bytes is not None]
        latencies = [trial.latency_s for trial in trials if trial.latency_s is not None]
        return cls(
            method=first.method,
            metric=first.metric,
            value=statistics.fmean(values),
            interval=_interval(first, values),
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


def _interval(first: Trial, values: Sequence[float]) -> Interval:
    if len(values) > 1:
        return Interval.over_seeds(values)
    if first.metric == "accuracy":
        return Interval.over_examples(first.value, int(first.metrics["num_examples"]))
    return Interval(None, None, "none: one seed, and the metric is not a share")
