"""Table: the rows of a file of any form, before it is known which fields are the input and the target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from app.errors import InvalidInput

MAX_LINE_CHARS: Final = 2**20
MAX_ROWS: Final = 1_000_000


class Form(StrEnum):
    """How a file holds its rows."""

    CSV = "csv"
    JSON_LINES = "json_lines"
    JSON = "json"
    LINES = "lines"
    """A text without fields, one input a line."""


@dataclass(frozen=True, slots=True)
class Row:
    """Attributes: line: on which it begins in JSON, and ends in CSV; counted from 1."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Table:
    """Attributes:
    title: what messages call the file.
    names: of all fields, in order.
    separator: of a CSV file; None of other forms, and if there is one column.
    has_header: False for a CSV file whose first line is an example; its columns are "column 1", "column 2".
    num_blank: rows without anything in them, which are left out.
    """

    title: str
    form: Form
    rows: Sequence[Row]
    names: tuple[str, ...]
    separator: str | None = None
    has_header: bool = True
    num_blank: int = 0


class OnLine(Protocol):
    """What stands on a line of a file."""

    @property
    def line(self) -> int: ...


Placed = TypeVar("Placed", bound=OnLine)


def split_lines(text: str) -> list[str]:
    r"""At `\n`, `\r\n` and `\r`, as Python reads files; `str.splitlines` also splits at U+2028 and seven others."""
    return re.split(r"\r\n|\n|\r", text)


def check_length(title: str, line: int, num_chars: int) -> None:
    """Raises InvalidInput: a row is longer than any may be."""
    if num_chars > MAX_LINE_CHARS:
        raise InvalidInput(f"{title}, line {line}: is longer than {MAX_LINE_CHARS} characters", param="file")


def limit_rows(title: str, rows: Iterable[Placed]) -> Iterator[Placed]:
    """Raises InvalidInput: there are more rows than a file may have."""
    for number, row in enumerate(rows, 1):
        if number > MAX_ROWS:
            raise InvalidInput(f"{title}, line {row.line}: there are more than {MAX_ROWS} rows", param="file")
        yield row
