"""From examples to a prompt ready to publish: the one function behind `softswap tune`."""

from __future__ import annotations

from collections.abc import Callable

from app.model.backbone import Backbone
from app.tuning.events import OnEvent, ignore_event
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run import Mark, TuningRun


def tune_task(
    backbone: Backbone,
    plan: TuningPlan,
    *,
    on_event: OnEvent = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Tunes a prompt and measures it on validation, with the device to itself; publishing it is the caller's.

    Args: should_stop: asked after every update; what is best so far is kept.

    Raises: as TuningRun and `TuningRun.advance`.
    """
    run = TuningRun(backbone, plan, on_event=on_event)
    while (mark := run.advance()) is not Mark.END:
        if mark is Mark.UPDATE and run.step and should_stop():
            run.stop()
    return run.result
