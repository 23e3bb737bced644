"""How commands that tune publish and report their result."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import typer

from app.cli.options.json_output import write_json
from app.errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.registry.version import Version
    from app.settings import Settings
    from app.tuning.result import TuneResult


def open_to_publish(settings: Settings, backbone: Backbone, task: str, alias: str) -> Registry:
    """Raises InvalidInput before anything is computed that could not be published."""
    from app.registry.registry import Registry
    from app.registry.store import open_store

    folder = settings.registry_folder
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (present.is_dir() and os.access(present, os.W_OK)):
        raise InvalidInput(f"the registry {folder} cannot be written; name another with --registry", param="registry")
    registry = Registry(open_store(folder, settings.tasks_below), backbone)
    registry.require_names(task, alias or None)
    return registry


def publish_all(
    backbone: Backbone, registry: Registry, task: str, result: TuneResult, *, description: str, alias: str
) -> list[Version]:
    """The best result under the alias if its gate allows it, else without one like the others: no prompt is lost."""
    from app.measure.plain_model import measure
    from app.measure.promote import publish, run_with

    best, *others = (each.publication(description) for each in (result, *result.others))
    try:
        version = run_with(partial(measure, backbone), publish(registry, task, best, alias=alias or None))
    except GateFailed as error:
        typer.echo(f"{alias} stays where it is: {error.message}", err=True)
        version = registry.publish(task, best, alias=None)
    return [version, *(registry.publish(task, each, alias=None) for each in others)]


def report_result(versions: Sequence[Version], result: TuneResult, *, as_json: bool) -> None:
    """Args: versions: the best first; more than one are an ensemble."""
    from app.registry.reference import name_together

    version = versions[0]
    together = name_together(each.id for each in versions)
    if as_json:
        more = {"ensemble": together} if len(versions) > 1 else {}
        write_json({"id": version.id, **more, "metrics": result.metrics, "curves": result.curves, **result.provenance})
        return
    main = result.validation.main_metric
    typer.echo(
        f"{version.id} published: validation {main} {result.validation.metrics[main]:.3f} on "
        f"{len(result.plan.validation)} examples, best after {result.best_step} of {result.num_steps} updates"
    )
    if len(result.members) > 1:
        config = result.config
        typer.echo(
            f"best of {len(result.members)}: init {config.init}, learning rate {config.learning_rate:g}, "
            f"{config.num_virtual_tokens} virtual tokens, seed {config.seed}"
        )
    if len(versions) > 1:
        typer.echo(f"{together} answers as an ensemble")
