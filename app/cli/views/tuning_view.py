"""How commands that tune show a run, let a person end it, publish what it found and report it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import typer

from app.cli.options import write_json

if TYPE_CHECKING:
    from app.measure.release import Release
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.settings import Settings
    from app.tuning.distillation import DistillationPlan
    from app.tuning.plan import TuningPlan
    from app.tuning.result import TuneResult


def open_to_publish(settings: Settings, backbone: Backbone, task: str, alias: str) -> Registry:
    """Raises InvalidInput: what is tuned could not be published."""
    from app.registry.registry import Registry
    from app.registry.store import FileStore

    store = FileStore(settings.registry_folder, settings.tasks_below)
    registry = Registry(store, backbone, max_positions=settings.max_model_len)
    registry.require_names(task, alias or None)
    return registry


def tune_and_publish(
    backbone: Backbone,
    registry: Registry,
    task: str,
    plan: TuningPlan | DistillationPlan,
    *,
    description: str,
    alias: str,
    promote: bool,
    keep_examples: bool,
    as_json: bool,
    began_s: float,
) -> tuple[TuneResult, list[Version], Release]:
    """Publish all that was found, the best first, and move the alias to it if it may.

    Args:
        keep_examples: of a distillation, those that the teacher answered.
        began_s: by `time.monotonic`, when the plan's budget began to run.
    """
    from app.measure.plain_model import measure
    from app.measure.promote import run_with
    from app.measure.release import release
    from app.tuning.plan import TuningPlan

    result = tune_and_show(backbone, plan, as_json=as_json, began_s=began_s)
    kept = (plan if isinstance(plan, TuningPlan) else result.plan).tuned_on if keep_examples else None
    found = [replace(each.publication(description), examples=kept) for each in (result, *result.others)]
    versions = [registry.publish(task, each, alias=None) for each in found]
    comparison = None
    if alias:
        comparison = run_with(partial(measure, backbone), result.compare_with(registry, versions[0], alias))
    return result, versions, release(registry, versions[0], alias or None, comparison, is_told=promote)


def tune_and_show(
    backbone: Backbone, plan: TuningPlan | DistillationPlan, *, as_json: bool, began_s: float
) -> TuneResult:
    """Args: see `tune_and_publish`."""
    from app.cli.views.tuning_progress import TuningProgress
    from app.tuning.run.run import tune_task

    with _interruptible() as should_stop, TuningProgress(as_json=as_json) as view:
        return tune_task(backbone, plan, on_event=view.show, should_stop=should_stop, began_s=began_s)


def report_result(versions: Sequence[Version], result: TuneResult, released: Release, *, as_json: bool) -> None:
    """Args: versions: the best first; more than one are an ensemble."""
    from app.registry.reference import name_together

    version = versions[0]
    together = name_together(each.id for each in versions)
    if as_json:
        more = {"ensemble": together} if len(versions) > 1 else {}
        found = {"metrics": result.metrics, "curves": result.curves, **result.provenance}
        write_json({"id": version.id, **more, **released.as_dict(), **found})
        return
    main = result.validation.main_metric
    typer.echo(
        f"{version.id} published: validation {main} {result.validation.metrics[main]:.3f} on "
        f"{len(result.measured_on)} examples, best after {result.best_step} of {result.num_steps} updates"
    )
    if len(result.plan.members) > 1:
        config = result.config
        typer.echo(
            f"best of {len(result.plan.members)}: init {config.init}, learning rate {config.learning_rate:g}, "
            f"{config.num_virtual_tokens} virtual tokens, seed {config.seed}"
        )
    if len(versions) > 1:
        typer.echo(f"{together} answers as an ensemble")
    if result.comparison_in_words:
        typer.echo(result.comparison_in_words)
    report_release(version, released)


def report_release(version: Version, released: Release) -> None:
    if released.words:
        typer.echo(released.words)
    if released.words and not released.is_moved:
        move = f"softswap tasks alias {version.task} {released.alias} {version.number} --force"
        typer.echo(f"`{move}` moves it all the same")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks tuning to end, the second one ends the command."""
    has_asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal has_asked
        if has_asked:
            raise KeyboardInterrupt
        has_asked = True
        typer.echo("ending after this update; interrupt again to publish nothing", err=True)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: has_asked
    finally:
        signal.signal(signal.SIGINT, previous)
