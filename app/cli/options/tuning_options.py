"""Options of the commands that tune, derived from the table of hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Annotated, Any

import typer

from app.errors import InvalidInput
from app.tuning.config import HYPERPARAMETERS, Init, TuneConfig
from app.tuning.hyperparameter import Hyperparameter

TRIED, SHARED = "Tried side by side: one value, or several separated by commas", "Tuning"

Publish = Annotated[
    int, typer.Option(help="Publish the best N prompts, an ensemble of N versions.", rich_help_panel=SHARED)
]


def takes_hyperparameters(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose parameter `asked` is given as options: it gets a dictionary of those that were set, parsed.

    Args: without: hyperparameters that the command does not have.
    """
    offered = [each for each in HYPERPARAMETERS if each.option and each.name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += map(_parameter, offered) if parameter.name == "asked" else [parameter]

        @wraps(command)
        def run(**arguments: Any) -> None:
            said = {each: arguments.pop(each.name) for each in offered}
            given = {each: value for each, value in said.items() if value is not None and value is not False}
            command(**arguments, asked={each.name: _parse(each, value) for each, value in given.items()})

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def split_asked(asked: dict[str, Any], **defaults: Any) -> tuple[TuneConfig, dict[str, tuple[Any, ...]]]:
    """What all members share, and the values that are tried side by side, the first of which stands for all."""
    tried = {name: value for name, value in asked.items() if isinstance(value, tuple)}
    shared = defaults | {name: value[0] if name in tried else value for name, value in asked.items()}
    shared["init"] = Init.TEXT if Init.TEXT in tried.get("init", ()) else Init.VOCAB
    return TuneConfig(**shared), tried


def _parameter(each: Hyperparameter) -> inspect.Parameter:
    help_text = f"{each.description} (default: {each.unset})" if each.unset else each.description
    panel = SHARED if each.axis is None and each.name != "init_text" else TRIED
    option = typer.Option(each.option, help=help_text, rich_help_panel=panel)
    is_number = each.axis is None and each.type in (int, float)
    kind = bool if each.type is bool else (each.type if is_number else str) | None
    default = False if each.type is bool else None
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _parse(each: Hyperparameter, value: Any) -> Any:
    """A tuple if several values can be tried. Raises InvalidInput that names the option."""
    if each.axis is not None:
        return tuple(_convert(each, part.strip(), "; several are separated by commas") for part in value.split(","))
    return _convert(each, value, "")


def _convert(each: Hyperparameter, value: Any, hint: str) -> Any:
    choices = [choice for choice in each.choices if choice != Init.PROMPT]
    try:
        if not each.choices or value in (*choices, "auto"):
            return each.type(value)
    except ValueError:
        pass
    words = " or ".join([", ".join(choices[:-1]), *choices[-1:]])
    noun = {int: "a whole number such as 20", float: "a number such as 0.03"}.get(each.type, words)
    raise InvalidInput(f"{each.option} must be {noun}{hint}", param=each.name)
