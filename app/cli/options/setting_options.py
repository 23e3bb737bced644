"""Options that set a setting, and the settings that a command line and the environment make together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from app.errors import InvalidInput, complain
from app.settings import ClientSettings, Settings

if TYPE_CHECKING:
    from app.cli.remote.remote_server import RemoteServer

FIELDS = Settings.model_fields | ClientSettings.model_fields


def setting(name: str, *flags: str, panel: str | None = None) -> Any:
    """The option of a setting; its help is the setting's description."""
    return typer.Option(*flags, help=FIELDS[name].description, rich_help_panel=panel, show_default=False)


Model = Annotated[str | None, setting("model")]
RegistryFolder = Annotated[Path | None, setting("registry", "--registry")]
Device = Annotated[str | None, setting("device")]
Quantize = Annotated[str | None, setting("quantize")]
Url = Annotated[str | None, setting("url")]
ApiKey = Annotated[str | None, setting("api_key")]


def read_settings(**given: Any) -> Settings:
    """Settings from the command line, then the environment. Raises InvalidInput that names option and variable."""
    try:
        return Settings(**_without_none(given))
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = str(problem["loc"][0])
        flag = f"--{name.replace('_', '-')} (SOFTSWAP_{name.upper()})"
        raise InvalidInput(f"{flag} {complain(problem)}", param=name) from None


def find_server(url: str | None, api_key: str | None) -> RemoteServer | None:
    """The server to ask, if the command line or the environment names one."""
    settings = ClientSettings(**_without_none({"url": url, "api_key": api_key}))
    if settings.url is None:
        return None
    from app.cli.remote.remote_server import RemoteServer

    return RemoteServer(settings.url, settings.api_key)


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
