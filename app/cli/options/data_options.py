"""Options that say what examples are and how they become text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.model.layout import Template

DATA = "Data"

ExampleFile = Annotated[
    Path, typer.Argument(help="Examples: JSON lines or CSV with input and target.", exists=True, dir_okay=False)
]
InputField = Annotated[str | None, typer.Option(help="Field that holds the input.", rich_help_panel=DATA)]
TargetField = Annotated[str | None, typer.Option(help="Field that holds the answer.", rich_help_panel=DATA)]
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


def parse_template(text: str | None) -> Template | None:
    r"""With `\n` for a new line. Raises InvalidInput."""
    from app.model.layout import Template

    return None if text is None else Template(unescape(text))


def parse_labels(text: str | None) -> list[str] | None:
    """None if the option was not given, empty for a task that writes text."""
    return None if text is None else [label.strip() for label in text.split(",") if label.strip()]


def unescape(text: str) -> str:
    r"""With each `\n`, as a shell passes it, made a new line."""
    return text.replace("\\n", "\n")
