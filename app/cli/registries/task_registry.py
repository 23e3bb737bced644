"""What `softswap tasks` works on, a folder here or a running server. Both show tasks as `/v1/tasks` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from app.cli.options.setting_options import find_server, read_settings

if TYPE_CHECKING:
    from app.measure.dataset import Example
    from app.measure.promote import GateRequest
    from app.registry.aliases import AliasTarget


@dataclass(frozen=True)
class TokensRequest:
    """What to show of a version's virtual tokens. Attributes: examples: to measure their effects on; may be empty."""

    num_nearest: int | None
    compare: str | None
    examples: Sequence[Example]


class TaskRegistry(Protocol):
    """What both can do. `selector` is what follows the @ of a name: a version, an alias, or nothing."""

    def tasks(self) -> list[dict[str, Any]]: ...
    def show(self, task: str, selector: str) -> dict[str, Any]: ...
    def show_tokens(self, name: str, asked: TokensRequest, plot: Path | None) -> dict[str, Any]: ...
    def add(self, task: str, path: Path | None, text: str | None, given: dict[str, Any]) -> dict[str, Any]: ...
    def set_alias(
        self, task: str, alias: str, target: AliasTarget, *, gate: GateRequest | None, force: bool
    ) -> None: ...
    def remove_gate(self, task: str, alias: str) -> None: ...
    def remove(self, task: str, selector: str) -> None: ...


def find_registry(url: str | None, api_key: str | None, **given: Any) -> TaskRegistry:
    """The named server, or a folder here. Args: given: settings of the folder and of its backbone."""
    server = find_server(url, api_key)
    if server is not None:
        from app.cli.registries.server_registry import ServerRegistry

        return ServerRegistry(server)
    from app.cli.registries.folder_registry import FolderRegistry

    return FolderRegistry(read_settings(**given, watch_interval=0))
