"""FolderRegistry: the tasks of a folder on this machine."""

from __future__ import annotations

import asyncio
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.answers.views import TaskObject, VersionObject
from app.cli.backbones.pull import obtain
from app.cli.places.exported import require_made_for
from app.errors import BackboneMismatch

if TYPE_CHECKING:
    from app.insight.report import PromptReport
    from app.measure.evaluation import Evaluation, Measurement
    from app.measure.promote import GateRequest
    from app.model.backbone import Backbone
    from app.registry.aliases import AliasTarget
    from app.registry.registry import Registry
    from app.settings import Settings


def open_folder(settings: Settings, backbone: Backbone | None = None) -> Registry:
    from app.registry.registry import Registry
    from app.registry.store import FileStore

    store = FileStore(settings.registry_folder, settings.tasks_below)
    return Registry(store, backbone, max_positions=settings.max_model_len)


class FolderRegistry:
    """The registry's files, without a server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def tasks(self) -> list[dict[str, Any]]:
        return [TaskObject.model_validate(summary).model_dump() for summary in open_folder(self._settings).tasks()]

    def show(self, task: str, selector: str) -> dict[str, Any]:
        registry = open_folder(self._settings)
        if selector:
            return VersionObject.model_validate(registry.resolve(f"{task}@{selector}")).model_dump()
        versions = [VersionObject.model_validate(version).model_dump() for version in registry.versions(task)]
        return {**TaskObject.model_validate(registry.task(task)).model_dump(), "versions": versions}

    def show_tokens(self, name: str, plot: Path | None, **asked: Any) -> dict[str, Any]:
        """Loads the backbone. Args: asked: of `TokenReporter.report`."""
        settings = obtain(self._settings)
        from app.answers.measuring.token_report import tokens_object
        from app.insight.plot import draw_report, require_drawing

        if plot is not None:
            require_drawing()
        report = asyncio.run(self._report(settings, name, asked))
        if plot is not None:
            plot.write_text(draw_report(report), encoding="utf-8")
        return tokens_object(report).model_dump(exclude_unset=True)

    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
        backbone = self._backbone
        from app.measure.promote import publish, run_with
        from app.model.layout import Template
        from app.registry.formats.binding import bind_text, norm_warnings
        from app.registry.formats.foreign_file import describe_checkpoint, read_checkpoint
        from app.registry.publication import Publication

        if path is not None:
            require_made_for(path, backbone.fingerprint, backbone.name)
        chosen = {"source_task": given.get("source_task")}
        prompt = bind_text(text or "", backbone) if path is None else read_checkpoint(path, backbone, **chosen)
        for warning in norm_warnings(prompt, backbone):
            typer.echo(f"warning: {warning}", err=True)
        publication = Publication(
            prompt,
            template=None if given["template"] is None else Template(given["template"]),
            labels=given["labels"] or (),
            description=given["description"],
            provenance={} if path is None else describe_checkpoint(path, **chosen),
        )
        registry = open_folder(self._settings, backbone)
        promotion = publish(registry, task, publication, alias=given["alias"], force=given["force"])
        return VersionObject.model_validate(run_with(self._measure, promotion)).model_dump()

    def set_alias(self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool) -> None:
        """Loads the backbone only if a gate asks for scores that are not known yet."""
        from app.measure.promote import promote, run_with

        registry = open_folder(self._settings)

        def measure(asked: Measurement) -> Evaluation:
            there = registry.task(task).of_target(target)
            if there.fingerprint != self._backbone.fingerprint:
                raise BackboneMismatch(
                    f"the gate compares versions for {there.name}, and cannot with {self._backbone.name}; "
                    "say with --model where that backbone is",
                    param="model",
                )
            return self._measure(asked)

        run_with(measure, promote(registry, task, alias, target, gate=gate, force=force))

    def remove_gate(self, task: str, alias: str) -> None:
        open_folder(self._settings).delete_gate(task, alias)

    def remove(self, task: str, selector: str) -> None:
        registry = open_folder(self._settings)
        if not selector:
            registry.delete_task(task)
        elif selector.isdigit():
            registry.delete_version(task, int(selector))
        else:
            registry.delete_alias(task, selector)

    async def _report(self, settings: Settings, name: str, asked: dict[str, Any]) -> PromptReport:
        from app.answers.call import Call
        from app.answers.measuring.evaluation import Evaluator
        from app.answers.measuring.token_report import TokenReporter
        from app.answers.targets import TaskFinder
        from app.main import open_engine

        with open_engine(settings) as opened:
            backbone, registry, engine = opened.backbone, opened.registry, opened.engine
            engine.start()
            finder, evaluator = TaskFinder(backbone, registry), Evaluator(backbone, registry, engine)
            call = Call.within(settings.request_timeout)
            return await TokenReporter(backbone, registry, finder, evaluator).report(name, **asked, call=call)

    def _measure(self, asked: Measurement) -> Evaluation:
        from app.measure.plain_model import measure

        return measure(self._backbone, asked)

    @cached_property
    def _backbone(self) -> Backbone:
        settings = obtain(self._settings)
        from app.main import load_backbone

        return load_backbone(settings)
