"""Options and arguments that say which task is meant, and how it is published or answers."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

TaskOrEnsemble = Annotated[
    str, typer.Argument(help="A task, a version of it, or an ensemble: sentiment, sentiment@3, sentiment@1+2+3.")
]
TaskOrVersion = Annotated[str, typer.Argument(help="A task, or a version of it: sentiment, sentiment@3.")]
NewTask = Annotated[str, typer.Option("--task", help="Name to publish under.")]
Description = Annotated[str, typer.Option(help="One sentence about the task, for people.")]
Alias = Annotated[str, typer.Option(help="Alias to point at the new version; '' moves none.")]
Combined = Annotated[
    Literal["average", "vote"] | None,
    typer.Option("--combine", help="How an ensemble answers. (default: average; texts: vote)"),
]
