"""Hyperparameters of a job's request, derived from their declarations in `app.tuning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, create_model

from app.http.fields import Strict
from app.tuning.config import HYPERPARAMETERS
from app.tuning.hyperparameter import Hyperparameter
from app.tuning.search import MAX_MEMBERS, SEARCH_HYPERPARAMETERS

MAX_INIT_TEXT_CHARS: Final = 8192
OFFERED: Final = tuple(each for each in (*HYPERPARAMETERS, *SEARCH_HYPERPARAMETERS) if each.is_offered)
Value = TypeVar("Value")


def _drop_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _listed(value: Any) -> Any:
    return value if value is None or value == "auto" or isinstance(value, list) else [value]


# "auto" becomes None before validation, so that a complaint about a number speaks of the number.
Auto = Annotated[Value | None, BeforeValidator(_drop_auto, json_schema_input_type=Value | Literal["auto"] | None)]
Several = Annotated[
    Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)] | None,
    BeforeValidator(_drop_auto),
    BeforeValidator(
        _listed,
        json_schema_input_type=Value
        | Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)]
        | Literal["auto"]
        | None,
    ),
]


def _field(each: Hyperparameter) -> Any:
    """Type and default as `create_model` takes them: one value or, if a search varies it, several."""
    description = f"{each.description} Without it: {each.unset}." if each.unset else each.description
    return _wrapped(each, _bounded(each)), Field(None, description=description)


def _bounded(each: Hyperparameter) -> Any:
    if each.choices:
        return Literal[each.choices]
    if each.type is str:
        return Annotated[str, Field(min_length=1, max_length=MAX_INIT_TEXT_CHARS)]
    if each.type is bool:
        return bool
    low = {"gt": 0} if each.is_positive and each.type is float else {"ge": max(each.low or 0, int(each.is_positive))}
    return Annotated[each.type, Field(**low, le=each.job_high or each.high)]


def _wrapped(each: Hyperparameter, bounded: Any) -> Any:
    if each.type is str:
        return bounded | None  # a text may well be "auto"
    return (Several if each.axis is not None else Auto)[bounded]


if TYPE_CHECKING:
    PromptTuningHyperparameters = Strict
    SupervisedHyperparameters = Strict
else:
    PromptTuningHyperparameters = create_model(
        "PromptTuningHyperparameters",
        __base__=Strict,
        __doc__="How a prompt is learned. Lists are tried side by side, every combination; nothing needs to be given.",
        **{each.job_name: _field(each) for each in OFFERED},
    )
    SupervisedHyperparameters = create_model(
        "SupervisedHyperparameters",
        __base__=Strict,
        __doc__="OpenAI's three; what they leave open is searched for.",
        **{each.job_name: _field(each) for each in OFFERED if each.job_name in ("n_epochs", "batch_size")},
        learning_rate_multiplier=(
            Auto[Annotated[float, Field(gt=0, le=1000)]],
            Field(None, description="Factor on the learning rates tried."),
        ),
    )
