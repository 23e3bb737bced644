"""Trials in processes of their own: one's memory is not another's, and nothing can leak from one into the next."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext

from app.compare.method import Method
from app.compare.setting import Setting
from app.compare.trial import Trial, run_trial
from app.errors import OutOfMemory
from app.model.backbone import Backbone


@dataclass(frozen=True)
class Checkpoint:
    """What `Backbone.load` needs to load the same backbone in another process."""

    source: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def load(self) -> Backbone:
        """Raises UnsupportedModel, InvalidInput."""
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        return Backbone.load(self.source, revision=self.revision, dtype=self.dtype, device=self.device)


def run_isolated(checkpoint: Checkpoint, setting: Setting, method: Method, seed: int) -> Trial:
    """`run_trial` in a fresh process that loads the backbone itself.

    Raises what that raises, and OutOfMemory when the system ends the process.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=_context()) as pool:
        try:
            return pool.submit(_run, checkpoint, setting, method, seed).result()
        except BrokenProcessPool as error:
            raise OutOfMemory(f"{method.words} was killed, most likely for its memory") from error


def _context() -> BaseContext:
    """Where it can be had, a server that imports everything once, computes nothing and is forked for each trial."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.auto.modeling_auto", "peft"])
    return context


def _run(checkpoint: Checkpoint, setting: Setting, method: Method, seed: int) -> Trial:
    for package in method.packages:
        import_module(package)  # before memory is measured
    return run_trial(checkpoint.load(), setting, method, seed)
