"""Hyperparameters of a job's request, derived from their declarations in `app.tuning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, create_model

from app.http.fields import Strict
from app.tuning.config import HYPERPARAMETERS, Hyperparameter
from app.tuning.search import MAX_MEMBERS, SEARCH_HYPERPARAMETERS

MAX_INIT_TEXT_CHARS: Final = 8192
OFFERED: Final = tuple(each for each in (*HYPERPARAMETERS, *SEARCH_HYPERPARAMETERS) if each.is_offered)
Value = TypeVar("Value")


def _drop_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _listed(value: Any) -> Any:
    value = _drop_auto(value)
    return value if value is None or isinstance(value, list) else [value]


# "auto" becomes None before validation, so that a complaint about a number speaks of the number.
Auto = Annotated[Value | None, BeforeValidator(_drop_auto, json_schema_input_type=Value | Literal["auto"] | None)]
Values = Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)]
Several = Annotated[
    Values[Value] | None,
    BeforeValidator(_listed, json_schema_input_type=Value | Values[Value] | Literal["auto"] | None),
]


def _field(each: Hyperparameter) -> Any:
    """Type and default as `create_model` takes them: one value or, if a search varies it, several."""
    description = f"{each.description} Without it: {each.unset}." if each.unset else each.description
    return _type_of(each), Field(None, description=description)


def _type_of(each: Hyperparameter) -> Any:
    if each.type is str and not each.choices:  # a text may well be "auto"
        return Annotated[str, Field(min_length=1, max_length=MAX_INIT_TEXT_CHARS)] | None
    low = {"gt": 0} if each.is_positive and each.type is float else {"ge": max(each.low or 0, int(each.is_positive))}
    bounded: Any = Annotated[each.type, Field(**low, le=each.job_high or each.high)]
    value = Literal[each.choices] if each.choices else bool if each.type is bool else bounded
    return (Several if each.axis is not None else Auto)[value]


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
