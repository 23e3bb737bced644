"""Files of examples, JSON lines or CSV: read, and checked line by line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example

MAX_FILE_BYTES = 512 * 2**20
MAX_LINE_BYTES = 2**20
MAX_ROWS = 1_000_000
FIELD_PAIRS = (("input", "target"), ("text", "label"), ("prompt", "completion"))


def read_dataset(
    source: Path | bytes, *, name: str | None = None, input_field: str | None = None, target_field: str | None = None
) -> Dataset:
    """Reads `.csv` files as CSV with a header and everything else as JSON lines.

    Args:
        source: a file, or its bytes.
        name: what to call bytes in messages; its ending decides the format.
        input_field, target_field: names of the two fields; without them the first pair of FIELD_PAIRS that a row has,
            or OpenAI's `messages` with one user message, one assistant message and perhaps a system message.

    Raises InvalidInput, naming file, line and field.
    """
    if (input_field is None) != (target_field is None):
        raise InvalidInput("give both input_field and target_field, or neither", param="input_field")
    fields = None if input_field is None or target_field is None else (input_field, target_field)
    title = _title(source, name)
    examples = {row.line: row.example(fields) for row in _rows(title, _read_text(title, source))}
    if not examples:
        raise InvalidInput(f"{title}: there are no examples in this file", param="file")
    return Dataset(title, tuple(examples.values()), tuple(examples))


def read_inputs(source: Path | bytes, *, name: str | None = None) -> tuple[str, ...]:
    """Inputs without targets: the lines of a `.txt` file, of others the input field of each row.

    Args: name: what to call bytes in messages; its ending decides the format.

    Raises InvalidInput, naming file, line and field.
    """
    title = _title(source, name)
    text = _read_text(title, source)
    if title.lower().endswith(".txt"):
        inputs = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        inputs = [row.input() for row in _rows(title, text)]
    if not inputs:
        raise InvalidInput(f"{title}: there are no inputs in this file", param="file")
    return tuple(inputs)


def _title(source: Path | bytes, name: str | None) -> str:
    return name or (source.name if isinstance(source, Path) else "data.jsonl")


def _read_text(title: str, source: Path | bytes) -> str:
    """UTF-8, with or without a byte order mark. UTF-16 of plain ASCII would pass for it if it had no NULs."""
    data = source if isinstance(source, bytes) else _read_file(title, source)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"{title}: the file is larger than {MAX_FILE_BYTES} bytes", param="file")
    if not data.strip():
        raise InvalidInput(f"{title}: the file is empty", param="file")
    fault = data.find(b"\0")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        line = data.count(b"\n", 0, fault) + 1
        raise InvalidInput(f"{title}, line {line}: is not UTF-8; save the file as UTF-8", param="file")
    return text


def _read_file(title: str, path: Path) -> bytes:
    """One byte more than a file may have is enough to refuse it."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{title}: cannot be read: {error.strerror}", param="file") from error


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a file. Attributes: line: on which it stands, or ends; counted from 1."""

    title: str
    line: int
    fields: Mapping[str, Any]

    def input(self) -> str:
        """Whether there is a target or not."""
        return self.text(next((name for name, _ in FIELD_PAIRS if name in self.fields), "input"))

    def example(self, fields: tuple[str, str] | None) -> Example:
        """Args: fields: names of the input's and the target's; None finds them."""
        if fields is None and "messages" in self.fields:
            return self._chat_example(self.fields["messages"])
        input_field, target_field = fields or self._find_pair()
        return Example(self.text(input_field), self.text(target_field).strip())

    def text(self, field: str, fields: Mapping[str, Any] | None = None) -> str:
        """Args: fields: that hold it; None: the row's own."""
        value = (self.fields if fields is None else fields).get(field)
        if value is None:
            raise self._fault(f"{field} is missing", field)
        if not isinstance(value, str):
            raise self._fault(f"{field} must be a string", field)
        if not value.strip():
            raise self._fault(f"{field} is empty", field)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._fault(f"{field} holds half of a surrogate pair", field) from error
        return value

    def _find_pair(self) -> tuple[str, str]:
        """The first of the pairs of which most is there."""
        pair = max(FIELD_PAIRS, key=lambda pair: len(self.fields.keys() & pair))
        if self.fields.keys().isdisjoint(pair):
            raise self._fault("input and target are missing", "input")
        return pair

    def _chat_example(self, messages: object) -> Example:
        role_to_content: dict[str, str] = {}
        for message in messages if isinstance(messages, list) else []:
            role = message.get("role") if isinstance(message, dict) else None
            if not isinstance(role, str) or role in role_to_content or message.keys() > {"role", "content"}:
                break
            role_to_content[role] = self.text("content", message)
        else:
            if {"user", "assistant"} <= role_to_content.keys() <= {"system", "user", "assistant"}:
                question = [role_to_content[role] for role in ("system", "user") if role in role_to_content]
                return Example("\n".join(question), role_to_content["assistant"].strip())
        raise self._fault(
            "messages must be one user and one assistant message, with at most one system message, each with role and "
            "content alone",
            "messages",
        )

    def _fault(self, message: str, param: str) -> InvalidInput:
        return InvalidInput(f"{self.title}, line {self.line}: {message}", param=param)


def _rows(title: str, text: str) -> Iterator[_Row]:
    return _csv_rows(title, text) if title.lower().endswith(".csv") else _json_rows(title, text)


def _json_rows(title: str, text: str) -> Iterator[_Row]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        if len(content) > MAX_LINE_BYTES:
            raise InvalidInput(f"{title}, line {line}: is longer than {MAX_LINE_BYTES} characters", param="file")
        if line > MAX_ROWS:
            raise InvalidInput(f"{title}, line {line}: there are more than {MAX_ROWS} lines", param="file")
        yield _Row(title, line, _json_fields(title, line, content))


def _json_fields(title: str, line: int, content: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number or a nesting is too large"
        raise InvalidInput(f"{title}, line {line}: is not JSON: {reason}", param="file") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{title}, line {line}: is not a JSON object", param="file")
    return fields


def _csv_rows(title: str, text: str) -> Iterator[_Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise InvalidInput(f"{title}, line 1: two columns have the same name", param="file")
        for fields in reader:
            line = reader.line_num
            if None in fields:
                raise InvalidInput(f"{title}, line {line}: has more fields than the header", param="file")
            yield _Row(title, line, fields)
    except csv.Error as error:
        raise InvalidInput(f"{title}, line {line + 1}: is not CSV: {error}", param="file") from error
