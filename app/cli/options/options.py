"""Options that several commands have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.errors import InvalidInput, complain
from app.setting_texts import SETTING_TO_TEXT

if TYPE_CHECKING:
    from app.cli.remote.remote import RemoteServer
    from app.model.layout import Template
    from app.settings import Settings


def setting(name: str, *flags: str, panel: str | None = None) -> Any:
    """The option that sets a setting."""
    return typer.Option(*flags, help=SETTING_TO_TEXT[name], rich_help_panel=panel, show_default=False)


TaskOrEnsemble = Annotated[
    str, typer.Argument(help="A task, a version of it, or an ensemble: sentiment, sentiment@3, sentiment@1+2+3.")
]
TaskOrVersion = Annotated[str, typer.Argument(help="A task, or a version of it: sentiment, sentiment@3.")]
NewTask = Annotated[str, typer.Option("--task", help="Name to publish under.")]
Description = Annotated[str, typer.Option(help="One sentence for people.")]
Alias = Annotated[str, typer.Option(help="Alias that shall mean the new version; '' moves none.")]
ExampleFile = Annotated[
    Path, typer.Argument(help="Examples: JSON lines or CSV with input and target.", exists=True, dir_okay=False)
]
Combined = Annotated[
    Literal["average", "vote"] | None,
    typer.Option("--combine", help="How an ensemble answers. (default: average; texts: vote)"),
]
Model = Annotated[str | None, setting("model")]
RegistryFolder = Annotated[Path | None, setting("registry", "--registry")]
Device = Annotated[str | None, setting("device")]
Quantize = Annotated[str | None, setting("quantize")]
Url = Annotated[str | None, setting("url")]
ApiKey = Annotated[str | None, setting("api_key")]
DATA = "Data"
InputField = Annotated[str | None, typer.Option(help="Field of the input.", rich_help_panel=DATA)]
TargetField = Annotated[str | None, typer.Option(help="Field of the answer.", rich_help_panel=DATA)]
TemplateText = Annotated[
    str | None,
    typer.Option(
        "--template",
        help=r"How an input becomes text: 'Review: {input}\nSentiment: {target}'.",
        rich_help_panel=DATA,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="Possible answers, separated by commas; '' for a task that writes text. (default: found in the examples)",
        rich_help_panel=DATA,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line.")]


def read_settings(**given: Any) -> Settings:
    """Settings of the environment under what the command line says. Raises InvalidInput that names the setting."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = str(problem["loc"][0])
        flag = f"--{name.replace('_', '-')} (SOFTSWAP_{name.upper()})"
        raise InvalidInput(f"{flag} {complain(problem)}", param=name) from None


def parse_template(text: str | None) -> Template | None:
    r"""With `\n` for the end of a line. Raises InvalidInput."""
    from app.model.layout import Template

    return None if text is None else Template(text.replace("\\n", "\n"))


def parse_labels(text: str | None) -> list[str] | None:
    """None where nothing was said, empty for a task that writes text."""
    return None if text is None else [label.strip() for label in text.split(",") if label.strip()]


def find_server(url: str | None, api_key: str | None) -> RemoteServer | None:
    """The server to ask, if the command line or the environment names one."""
    from app.settings import ClientSettings

    pairs = (("url", url), ("api_key", api_key))
    given: dict[str, Any] = {name: value for name, value in pairs if value is not None}
    settings = ClientSettings(**given)
    if settings.url is None:
        return None
    from app.cli.remote.remote import RemoteServer

    return RemoteServer(settings.url, settings.api_key)


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
