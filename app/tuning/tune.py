"""From examples, or a teacher, to a prompt ready to publish: what `softswap tune` and `softswap distill` call."""

from __future__ import annotations

from collections.abc import Callable

from app.model.backbone import Backbone
from app.tuning.distillation.distillation import DistillationPlan
from app.tuning.distillation.distillation_run import DistillationRun
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import OnEvent, ignore_event
from app.tuning.run.run import TuningRun


def tune_task(
    backbone: Backbone,
    plan: TuningPlan,
    *,
    on_event: OnEvent = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Tunes a prompt and measures it on validation, alone on the device; the caller publishes it.

    Args: should_stop: asked after every update; the best state so far is kept.

    Raises what TuningRun and `TuningRun.advance` raise.
    """
    return run_alone(TuningRun(backbone, plan, on_event=on_event), should_stop)


def distill_prompt(
    backbone: Backbone,
    plan: DistillationPlan,
    *,
    on_event: OnEvent = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Lets the teacher answer and the student learn, alone on the device. Raises what DistillationRun raises."""
    return run_alone(DistillationRun(backbone, plan, on_event=on_event), should_stop)


def run_alone(run: TuningRun | DistillationRun, should_stop: Callable[[], bool]) -> TuneResult:
    """Every slice of a run, one after another."""
    while not run.is_done:
        run.prepare()
        run.advance()
        if run.can_save and run.step and should_stop():
            run.stop()
    return run.result
