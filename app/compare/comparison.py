"""Comparison: every method under every seed on one backbone and one split of the data."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers

from app.compare.isolation import Checkpoint, run_isolated
from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.summary import Summary, summarise
from app.compare.trial import Trial
from app.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Comparison:
    """Attributes: trials: one or more for each method."""

    setting: Setting
    trials: tuple[Trial, ...]

    @property
    def summaries(self) -> list[Summary]:
        return summarise(self.trials)

    def as_json(self) -> dict[str, Any]:
        """One object with everything a later page or comparison needs."""
        first = self.trials[0]
        return {
            "backbone": {"fingerprint": first.backbone_fingerprint, "num_parameters": first.num_backbone_parameters},
            "setting": self.setting.as_json(),
            "memory_measure": first.memory_measure,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "num_threads": torch.get_num_threads(),
            "methods": [summary.as_json() for summary in self.summaries],
            "trials": [trial.as_json() for trial in self.trials],
        }


def compare(
    checkpoint: Checkpoint,
    setting: Setting,
    methods: Sequence[Method],
    seeds: Sequence[int],
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Comparison:
    """Raises InvalidInput and what `run_trial` raises."""
    require_packages(package for method in methods for package in method.packages)
    trials = []
    for method, seed in planned(methods, seeds):
        trials.append(run_isolated(checkpoint, setting, method, seed))
        on_trial(trials[-1])
    return Comparison(setting, tuple(trials))


def planned(methods: Sequence[Method], seeds: Sequence[int]) -> Iterator[tuple[Method, int]]:
    """Each method under each seed; once where no seed makes a difference."""
    for method in Method:
        if method in methods:
            yield from ((method, seed) for seed in (seeds if method.depends_on_seed else seeds[:1]))


def require_packages(names: Iterator[str]) -> None:
    """Raises InvalidInput: the extra `compare` is not installed."""
    missing = sorted({name for name in names if find_spec(name) is None})
    if missing:
        raise InvalidInput(f"{' and '.join(missing)} is missing: pip install 'softswap[compare]'", param="methods")
