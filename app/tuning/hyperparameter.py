"""Hyperparameter: one declaration, from which its check, its field of a job's request and its option are derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, cast

from pydantic import Field, ValidationError

from app.errors import InvalidInput, complain

Result = TypeVar("Result")


@dataclass(frozen=True)
class Hyperparameter:
    """What is declared of one field.

    Attributes:
        type: bool, int, float, str or a StrEnum.
        low, high: the smallest and the largest value.
        unset: what is done without it, in words; empty if the default says it.
        is_offered: whether a job's request may set it.
        job_name: what it is called there.
        job_high: the largest value there, if that is lower.
        is_positive: whether 0 is refused there; `auto` says the same.
        option: of `softswap tune`, if it has one.
        axis: place among those that a search tries several values of. Members are numbered in this order, and saved
            runs know them by number, so places stay.
        choices: values of a StrEnum that may be asked for.
    """

    name: str
    type: Any
    description: str
    low: float | None = None
    high: float | None = None
    unset: str = ""
    is_offered: bool = True
    job_name: str = ""
    job_high: float | None = None
    is_positive: bool = False
    option: str | None = None
    axis: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def plural(self) -> str:
        """What records call several values."""
        return self.name.replace("num_", "nums_", 1) if self.name.startswith("num_") else f"{self.name}s"


def declare(default: Any, description: str, *, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    """The default of a field of a pydantic dataclass. Args: more: other attributes of Hyperparameter."""
    return Field(
        default, description=description, ge=low, le=high, json_schema_extra={"low": low, "high": high, **more}
    )


def declared_of(kind: type) -> tuple[Hyperparameter, ...]:
    """The declared fields of a pydantic dataclass, in order."""
    fields = cast(Any, kind).__pydantic_fields__
    return tuple(_read(name, info) for name, info in fields.items() if info.json_schema_extra)


def named(make: Callable[[Any], Result], values: Any) -> Result:
    """What `make` makes of the values. Raises InvalidInput that names the field, instead of pydantic's own error."""
    try:
        return make(values)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = str(problem["loc"][0])
        raise InvalidInput(f"{name} {complain(problem)}", param=name) from None


def _read(name: str, info: Any) -> Hyperparameter:
    more = dict(info.json_schema_extra)
    left_out = ("auto", *more.pop("left_out", ()))
    choices: tuple[str, ...] = ()
    if isinstance(info.annotation, type) and issubclass(info.annotation, StrEnum):
        choices = tuple(each.value for each in info.annotation if each.value not in left_out)
    more = {"job_name": name, **more}
    return Hyperparameter(name, info.annotation, str(info.description), choices=choices, **more)
