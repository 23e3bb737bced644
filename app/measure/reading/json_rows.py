"""Rows of JSON: a line each, a list of objects, or objects that are spread over several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from app.errors import InvalidInput
from app.measure.reading.table import Form, Row, Table, check_length, limit_rows, split_lines


def read_json(title: str, text: str) -> Table:
    """Raises InvalidInput, with file and line."""
    first = next(line for line in split_lines(text) if line.strip())
    is_lines = bool(names_in(first))
    rows = list(limit_rows(title, _json_lines(title, text) if is_lines else _json_document(title, text)))
    if len(rows) == 1 and any(map(_is_list_of_objects, rows[0].fields.values())) and "messages" not in rows[0].fields:
        raise InvalidInput(f"{title}: is one object; give the list of examples inside it alone", param="file")
    names = dict.fromkeys(name for row in rows for name in row.fields)
    return Table(title, Form.JSON_LINES if is_lines else Form.JSON, rows, tuple(names))


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def names_in(line: str) -> set[str]:
    """Of the fields of an object on one line; none if it is anything else, as the first line of one over several."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return set()
    return set(value) if isinstance(value, dict) else set()


def _json_lines(title: str, text: str) -> Iterator[Row]:
    for line, content in enumerate(split_lines(text), 1):
        if content.strip():
            check_length(title, line, len(content))
            yield Row(line, _require_object(title, line, _read_json(title, line, content)))


def _json_document(title: str, text: str) -> Iterator[Row]:
    """A list of objects, or objects one after the other, each over several lines."""
    place = _Place(text)
    is_list = place.take("[")
    while not place.is_at_end and not (is_list and place.is_at("]")):
        line, start = place.line, place.position
        value = place.read_value(title)
        check_length(title, line, place.position - start)
        yield Row(line, _require_object(title, line, value))
        if is_list and not place.take(",") and not place.is_at("]"):
            raise InvalidInput(f"{title}, line {place.line}: is not JSON: the list does not end", param="file")
    if is_list and not (place.take("]") and place.is_at_end):
        raise InvalidInput(
            f"{title}, line {place.line}: is not JSON: the list ends too soon or not at all", param="file"
        )


class _Place:
    """A position in a JSON document, never at a blank. Attributes: line: of the position, counted from 1."""

    _blank = re.compile(r"\s*")
    _end_of_line = re.compile(r"\r\n|\n|\r")
    _decoder = json.JSONDecoder()

    def __init__(self, text: str) -> None:
        self._text = text
        self.position, self.line = 0, 1
        self._move(0)

    @property
    def is_at_end(self) -> bool:
        return self.position == len(self._text)

    def is_at(self, char: str) -> bool:
        return self._text.startswith(char, self.position)

    def take(self, char: str) -> bool:
        """Pass this character. Returns False if another one is here."""
        is_here = self.is_at(char)
        if is_here:
            self._move(self.position + 1)
        return is_here

    def read_value(self, title: str) -> Any:
        """Raises InvalidInput."""
        try:
            value, after = self._decoder.raw_decode(self._text, self.position)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                self._move(error.pos)
            raise _no_json(title, self.line, error) from error
        self._move(after)
        return value

    def _move(self, position: int) -> None:
        after = self._blank.match(self._text, position)
        assert after is not None
        self.line += sum(1 for _ in self._end_of_line.finditer(self._text, self.position, after.end()))
        self.position = after.end()


def _read_json(title: str, line: int, content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _no_json(title, line, error) from error


def _no_json(title: str, line: int, error: Exception) -> InvalidInput:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number or a nesting is too large"
    return InvalidInput(f"{title}, line {line}: is not JSON: {reason}", param="file")


def _require_object(title: str, line: int, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{title}, line {line}: is not a JSON object", param="file")
    return value
