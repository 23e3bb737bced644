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
from app.tuning.run.run_state import RunState


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
    run = make_run(backbone, plan, on_event=on_event)
    while not run.is_done:
        run.prepare()
        run.advance()
        if run.can_save and run.step and should_stop():
            run.stop()
    return run.result


def make_run(
    backbone: Backbone,
    plan: TuningPlan | DistillationPlan,
    *,
    state: RunState | None = None,
    slice_s: float | None = None,
    on_event: OnEvent = ignore_event,
) -> TuningRun | DistillationRun:
    """Args: as TuningRun has them. Raises what the run raises."""
    if isinstance(plan, DistillationPlan):
        return DistillationRun(backbone, plan, state=state, slice_s=slice_s, on_event=on_event)
    return TuningRun(backbone, plan, state=state, slice_s=slice_s, on_event=on_event)
