"""Where `softswap tasks` works: a folder on this machine, or a running server. Both show tasks as `/v1/tasks` does."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from app.cli.options.setting_options import find_server, read_settings
from app.cli.remote.remote_server import RemoteServer, example_items, task_path
from app.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from app.measure.evaluation import Evaluation, Measurement
    from app.measure.promote import GateRequest
    from app.model.backbone import Backbone
    from app.registry.aliases import AliasTarget
    from app.registry.registry import Registry

TENSOR_FILE = "adapter_model.safetensors"


class TaskRegistry(Protocol):
    """What both can do. `selector` is what stands behind the @ of a name, or nothing."""

    def tasks(self) -> list[dict[str, Any]]: ...
    def show(self, task: str, selector: str) -> dict[str, Any]: ...
    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]: ...
    def set_alias(
        self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool
    ) -> None: ...
    def remove_gate(self, task: str, alias: str) -> None: ...
    def remove(self, task: str, selector: str) -> None: ...


def find_registry(
    url: str | None, api_key: str | None, folder: Path | None, *, model: str | None = None, device: str | None = None
) -> TaskRegistry:
    """Args: model, device: of the backbone that prompts added to a folder belong to."""
    server = find_server(url, api_key)
    return FolderRegistry(folder, model=model, device=device) if server is None else ServerRegistry(server)


def open_folder(folder: Path | None, backbone: Backbone | None = None) -> Registry:
    """Raises NotFound: there is no such folder, and without a backbone nothing could be put into a new one."""
    from app.registry.registry import Registry
    from app.registry.stores.layered_store import open_store

    settings = read_settings(registry=folder)
    if backbone is None and settings.registry is not None and not settings.registry.is_dir():
        raise NotFound(f"there is no registry at {settings.registry}; name one with --registry")
    return Registry(open_store(settings.registry_folder, settings.tasks_below), backbone)


class FolderRegistry:
    """The registry's files, with no server between."""

    def __init__(self, folder: Path | None, *, model: str | None, device: str | None) -> None:
        self._folder = folder
        self._model = model
        self._device = device

    def tasks(self) -> list[dict[str, Any]]:
        from app.answers.views.tasks import task_object

        return [task_object(summary).model_dump() for summary in open_folder(self._folder).tasks()]

    def show(self, task: str, selector: str) -> dict[str, Any]:
        from app.answers.views.tasks import task_object, version_object

        registry = open_folder(self._folder)
        if selector:
            return version_object(registry.resolve(f"{task}@{selector}")).model_dump()
        versions = [version_object(version).model_dump() for version in registry.versions(task)]
        return {**task_object(registry.task(task)).model_dump(), "versions": versions}

    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
        from app.answers.views.tasks import version_object
        from app.measure.promote import publish, run_with
        from app.model.layout import Template
        from app.registry.formats.binding import bind_text, norm_warnings
        from app.registry.formats.importers import describe_checkpoint, read_checkpoint
        from app.registry.publication import Publication

        if path is not None and not path.exists():
            raise InvalidInput(f"there is no {path}", param="path")
        backbone = self._backbone
        prompt = bind_text(text or "", backbone) if path is None else read_checkpoint(path, backbone)
        for warning in norm_warnings(prompt, backbone):
            typer.echo(f"warning: {warning}", err=True)
        publication = Publication(
            prompt,
            template=None if given["template"] is None else Template(given["template"]),
            labels=given["labels"] or (),
            description=given["description"],
            provenance={} if path is None else describe_checkpoint(path),
        )
        registry = open_folder(self._folder, backbone)
        promotion = publish(registry, task, publication, alias=given["alias"], force=given["force"])
        return version_object(run_with(self._measure, promotion)).model_dump()

    def set_alias(self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool) -> None:
        """Loads the backbone only if a gate asks for scores that are not known yet."""
        from app.measure.promote import promote, run_with

        run_with(self._measure, promote(open_folder(self._folder), task, alias, target, gate=gate, force=force))

    def remove_gate(self, task: str, alias: str) -> None:
        open_folder(self._folder).gates.delete(task, alias)

    def _measure(self, asked: Measurement) -> Evaluation:
        from app.measure.plain_model import measure

        return measure(self._backbone, asked)

    @cached_property
    def _backbone(self) -> Backbone:
        from app.main import load_backbone

        return load_backbone(read_settings(model=self._model, device=self._device))

    def remove(self, task: str, selector: str) -> None:
        registry = open_folder(self._folder)
        if not selector:
            registry.delete_task(task)
        elif selector.isdigit():
            registry.delete_version(task, int(selector))
        else:
            registry.delete_alias(task, selector)


class ServerRegistry:
    """The registry of a running server."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server

    def tasks(self) -> list[dict[str, Any]]:
        return self._server.pages("/v1/tasks")

    def show(self, task: str, selector: str) -> dict[str, Any]:
        if selector:
            return dict(self._server.call("GET", task_path(task, "versions", selector)))
        versions = self._server.call("GET", task_path(task, "versions") + "?limit=1000")["data"]
        return {**self._server.call("GET", task_path(task)), "versions": versions[::-1]}

    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]:
        route = task_path(task, "versions")
        if path is None:
            return dict(self._server.call("POST", route, {"text": text, **given}))
        file = path / TENSOR_FILE if path.is_dir() else path
        if not file.is_file():
            raise InvalidInput(f"there is no {file}", param="path")
        return dict(self._server.upload(route, file=file.read_bytes(), metadata=given))

    def set_alias(self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool) -> None:
        body: dict[str, Any] = {"version": target, "force": force}
        if isinstance(target, dict):
            body = {"weights": {str(number): share for number, share in target.items()}, "force": force}
        if gate is not None:
            examples = example_items(gate.examples)
            body["gate"] = {"examples": examples, "metric": gate.metric, "tolerance": gate.tolerance}
        self._server.call("PUT", task_path(task, "aliases", alias), body)

    def remove_gate(self, task: str, alias: str) -> None:
        self._server.call("DELETE", task_path(task, "aliases", alias, "gate"))

    def remove(self, task: str, selector: str) -> None:
        kind = "versions" if selector.isdigit() else "aliases"
        self._server.call("DELETE", task_path(task, kind, selector) if selector else task_path(task))
