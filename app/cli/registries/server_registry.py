"""ServerRegistry: the tasks of a running server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from app.cli.remote.remote_server import RemoteServer, example_items, task_path
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.measure.dataset import Example
    from app.measure.promote import GateRequest
    from app.registry.aliases import AliasTarget

TENSOR_FILE = "adapter_model.safetensors"


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

    def show_tokens(self, name: str, plot: Path | None, examples: Sequence[Example], **query: Any) -> dict[str, Any]:
        """The server draws the plot too."""
        given = {key: value for key, value in query.items() if value is not None}
        body = {"examples": example_items(examples)} if examples else None
        method = "POST" if examples else "GET"

        def path(**more: str) -> str:
            return f"{task_path(name, 'tokens')}?{urlencode({**given, **more})}"

        shown: dict[str, Any] = self._server.call(method, path(), body)
        if plot is not None:
            plot.write_bytes(self._server.fetch(method, path(format="svg"), body))
        return shown

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
