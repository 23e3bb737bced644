"""`softswap retune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli import options
from app.cli.places.paths import require_registry, require_registry_to_write
from app.cli.retuning.planning import Asked, plan_moves
from app.cli.retuning.report import report
from app.settings import Settings
from app.tuning.config import DEFAULT_PATIENCE

FILES = "a file, task=file, or a folder with <task>.jsonl or <task>/train.jsonl."


@options.takes_settings("model", "registry", "device")
@options.takes_hyperparameters()
def retune(
    *,
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or versions to start from: sentiment, sentiment@3.")
    ] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Every task that has no version for the model yet.")] = False,
    old: Annotated[
        str | None,
        typer.Option("--from", help="The old model, as --model takes it, or a version to start from. (default: found)"),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(help=f"Inputs for the old version to answer: {FILES}", rich_help_panel=options.DATA),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(help=f"Or examples with right answers: {FILES}", rich_help_panel=options.DATA),
    ] = None,
    input_field: options.InputField = None,
    target_field: options.TargetField = None,
    asked: dict[str, Any],
    promote: Annotated[
        bool, typer.Option("--promote", help="Move `live` even if the task has a version for the model already.")
    ] = False,
    as_json: options.AsJson = False,
    settings: Settings,
) -> None:
    """Make versions of tasks for another model: what an upgrade of the model costs.

    A new version learns from the examples that the old one was tuned on, if the task kept them (`softswap tune
    --keep-examples`), or from --examples; otherwise the old version answers --inputs on its own model, and the new one
    learns these answers. Each model is loaded once, the new one after the old one is gone. Old and new are compared on
    inputs held out, and --budget is for each task. `live` means the new version if the task had none for the model. A
    task that fails leaves the others alone, and the exit code is 1.

        softswap retune sentiment domain --model smollm2-135m-instruct --inputs data/ --budget 5m
        softswap retune --all --from old-model/ --model new-model/
    """
    config, tried = options.split_asked(asked, patience=DEFAULT_PATIENCE)
    require_registry(settings)
    require_registry_to_write(settings)
    fields = (input_field, target_field)
    moves = plan_moves(settings, Asked(tasks or (), is_all, old, inputs or (), examples or (), fields))
    from app.cli.retuning.session import RetuningSession

    session = RetuningSession(settings, moves, config, tried, promote=promote, as_json=as_json)
    try:
        session.ask_old()
        session.tune_new()
    finally:  # also what was done before an interruption
        report(list(session.task_to_outcome.values()), as_json=as_json)
    if any(outcome.version is None for outcome in session.task_to_outcome.values()):
        raise typer.Exit(1)
