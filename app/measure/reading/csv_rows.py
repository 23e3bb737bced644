"""Rows of CSV, whatever separates its cells, with a header or without one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from app.errors import InvalidInput
from app.measure.reading.table import MAX_LINE_CHARS, Form, Row, Table, check_length, limit_rows, split_lines

SEPARATORS: Final = (",", ";", "\t", "|")
NO_SEPARATOR: Final = "\x1f"
"""What no text holds: the one column of a file takes whole lines."""
NUM_SNIFFED_CHARS: Final = 2**18
NUM_SNIFFED_ROWS: Final = 100
MAX_NAME_CHARS: Final = 60
MAX_NAME_WORDS: Final = 7


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    cells: list[str]

    @property
    def is_blank(self) -> bool:
        return not any(cell.strip() for cell in self.cells)


def read_csv(title: str, text: str, known_names: Collection[str] = (), asked: Collection[str | None] = ()) -> Table:
    """Args:
        known_names: in lower case; a first line that has one of these is a header, unless it recurs below.
        asked: names of columns, with which it is one in any case.

    Raises InvalidInput, with file and line.
    """
    csv.field_size_limit(MAX_LINE_CHARS)
    said = re.match(r"sep=(.)(?:\r\n|\n|\r)", text)  # what Excel writes, and reads, above the header
    separator = said[1] if said else _find_separator(text)
    records = _read_records(title, text, separator or NO_SEPARATOR)[1 if said else 0 :]
    filled = [record for record in records if not record.is_blank]
    if not filled:
        raise InvalidInput(f"{title}: there are no rows in this file", param="file")
    has_header = _is_header(filled, known_names, asked)
    head = filled[0].cells if has_header else [f"column {i}" for i in range(1, len(filled[0].cells) + 1)]
    body = filled[1:] if has_header else filled
    names = _name_columns(title, head, body)
    rows = [_fit(title, record, names) for record in body]
    used = tuple(name for name in names if name is not None)
    return Table(title, Form.CSV, rows, used, separator, has_header, len(records) - len(filled))


def _find_separator(text: str) -> str | None:
    """The one that cuts the most rows into as many cells as the first; None if none of them cuts the first at all."""
    scores: dict[str, tuple[float, int]] = {}
    for separator in SEPARATORS:
        sample = io.StringIO(text[:NUM_SNIFFED_CHARS], newline="")
        records = [row for row in islice(csv.reader(sample, delimiter=separator), NUM_SNIFFED_ROWS) if any(row)]
        width = len(records[0]) if records else 0
        if width > 1:
            scores[separator] = (sum(len(row) == width for row in records) / len(records), width)
    return max(scores, key=scores.__getitem__, default=None)


def _read_records(title: str, text: str, separator: str) -> list[_Record]:
    """Cells in quotes may hold separators and ends of lines.

    If the quotes of a file with tabs do not match, they belong to its texts: many programs that write tabs quote
    nothing.
    """
    try:
        return list(limit_rows(title, _read_quoted(title, text, separator)))
    except InvalidInput:
        if separator != "\t":
            raise
        return list(limit_rows(title, _read_unquoted(title, text)))


def _read_unquoted(title: str, text: str) -> Iterator[_Record]:
    for line, content in enumerate(split_lines(text), 1):
        check_length(title, line, len(content))
        yield _Record(line, content.split("\t"))


def _read_quoted(title: str, text: str, separator: str) -> Iterator[_Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 0
    try:
        for cells in reader:
            line = reader.line_num
            yield _Record(line, cells)
    except csv.Error as error:
        raise InvalidInput(f"{title}, line {line + 1}: is not CSV: {error}", param="file") from error


def _is_header(records: Sequence[_Record], known_names: Collection[str], asked: Collection[str | None]) -> bool:
    """Whether the first record names the columns: no cell of it is a value further down, or looks like one."""
    first = [cell.strip() for cell in records[0].cells]
    if not set(asked).isdisjoint(first):
        return True
    others = records[1 : 1 + NUM_SNIFFED_ROWS]
    if any(cell and cell in (_cell(record, i) for record in others) for i, cell in enumerate(first)):
        return False
    return any(cell.lower() in known_names for cell in first) or not any(map(_looks_like_value, first))


def _looks_like_value(cell: str) -> bool:
    is_sentence = cell.endswith((".", "!", "?")) and " " in cell
    is_long = len(cell) > MAX_NAME_CHARS or len(cell.split()) > MAX_NAME_WORDS
    return is_sentence or is_long or re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell) is not None


def _cell(record: _Record, column: int) -> str:
    return record.cells[column].strip() if column < len(record.cells) else ""


def _name_columns(title: str, head: Sequence[str], body: Sequence[_Record]) -> list[str | None]:
    """A column without a name gets one if there is anything in it, and None otherwise."""
    names: list[str | None] = [cell.strip() or None for cell in head]
    said = [name for name in names if name is not None]
    if len(set(said)) < len(said):
        raise InvalidInput(f"{title}, line 1: two columns have the same name", param="file")
    for i, name in enumerate(names):
        if name is None and any(_cell(record, i) for record in body):
            names[i] = f"column {i + 1}"
    return names


def _fit(title: str, record: _Record, names: Sequence[str | None]) -> Row:
    """Cells that a short row lacks are no fields of it; blank ones after the last column are left out."""
    if any(cell.strip() for cell in record.cells[len(names) :]):
        raise InvalidInput(
            f"{title}, line {record.line}: has more fields than the header; a text that holds the separator must stand "
            "in quotes",
            param="file",
        )
    return Row(record.line, {name: cell for name, cell in zip(names, record.cells, strict=False) if name is not None})
