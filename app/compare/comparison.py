"""The comparison: every method under every seed on one backbone and one split of the data.

Each trial runs in a process of its own: one's memory is not another's, and nothing leaks from one into the next.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any, TypeAlias

import torch
import transformers
from transformers.utils import logging as transformers_logging

from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.trial import Summary, Trial, run_trial, summarize
from app.errors import InvalidInput, OutOfMemory
from app.model.backbone import Backbone

Load: TypeAlias = Callable[[], Backbone]
"""Loads the same backbone in another process: a call that can be pickled."""


@dataclass(frozen=True, eq=False)
class ComparisonReport:
    """Attributes: trials: one or more for each method."""

    setting: Setting
    trials: tuple[Trial, ...]

    @property
    def summaries(self) -> list[Summary]:
        return summarize(self.trials)

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
            "methods": [asdict(summary) for summary in self.summaries],
            "trials": [asdict(trial) for trial in self.trials],
        }


def compare(
    load: Load,
    setting: Setting,
    methods: Sequence[Method],
    seeds: Sequence[int],
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> ComparisonReport:
    """Raises InvalidInput and what `run_isolated` raises."""
    require_packages(package for method in methods for package in method.packages)
    trials = []
    for method, seed in planned(methods, seeds):
        trials.append(run_isolated(load, setting, method, seed))
        on_trial(trials[-1])
    return ComparisonReport(setting, tuple(trials))


def planned(methods: Sequence[Method], seeds: Sequence[int]) -> Iterator[tuple[Method, int]]:
    """Each method under each seed; once if the seed makes no difference."""
    for method in Method:
        if method in methods:
            yield from ((method, seed) for seed in (seeds if method.depends_on_seed else seeds[:1]))


def require_packages(names: Iterable[str]) -> None:
    """Raises InvalidInput: the extra `compare` is not installed."""
    missing = sorted({name for name in names if find_spec(name) is None})
    if missing:
        raise InvalidInput(f"{' and '.join(missing)} is missing: pip install 'softswap[compare]'", param="methods")


def run_isolated(load: Load, setting: Setting, method: Method, seed: int) -> Trial:
    """`run_trial` in a fresh process that loads the backbone itself.

    Raises what that raises, and OutOfMemory when the system kills the process.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=_context()) as pool:
        try:
            return pool.submit(_run, load, setting, method, seed).result()
        except BrokenProcessPool as error:
            raise OutOfMemory(f"{method.words} was killed, most likely because of its memory") from error


def _context() -> BaseContext:
    """Where the system has it, a server that imports everything once, computes nothing and is forked for each trial."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.auto.modeling_auto", "peft"])
    return context


def _run(load: Load, setting: Setting, method: Method, seed: int) -> Trial:
    for package in method.packages:
        import_module(package)  # before memory is measured
    transformers_logging.disable_progress_bar()
    return run_trial(load(), setting, method, seed)
