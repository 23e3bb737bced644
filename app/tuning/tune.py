"""From examples, or a teacher, to a prompt ready to publish: what `softswap tune` and `softswap distill` call."""

from __future__ import annotations

from collections.abc import Callable

from app.model.backbone import Backbone
from app.tuning.distillation import DistillationPlan
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import OnEvent, ignore_event
from app.tuning.run.run import TuningRun


def tune_task(
    backbone: Backbone,
    plan: TuningPlan | DistillationPlan,
    *,
    on_event: OnEvent = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Tunes a prompt and measures it on validation, alone on the device; the caller publishes it.

    Args: should_stop: asked after every update; the best state so far is kept.

    Raises what the run and its `advance` raise.
    """
    run = TuningRun(backbone, plan, on_event=on_event)
    while not run.is_done:
        run.prepare()
        run.advance()
        if run.can_save and run.step and should_stop():
            run.stop()
    return run.result
