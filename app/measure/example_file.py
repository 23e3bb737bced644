"""Files of examples, JSON or CSV: read, and checked row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, Reading, SetAside
from app.measure.reading.columns import (
    CHAT,
    INPUT_NAMES,
    KNOWN_NAMES,
    MESSAGES,
    Columns,
    find_columns,
    find_input,
    guess_columns,
    guess_input,
)
from app.measure.reading.content import read_text
from app.measure.reading.csv_rows import read_csv
from app.measure.reading.json_rows import names_in, read_json
from app.measure.reading.table import Form, Row, Table, split_lines

MAX_INCOMPLETE_SHARE: Final = 0.1
"""Of the rows, that may lack an input or a target and are set aside; if more do, the file is refused."""
MAX_SYSTEM_CHARS: Final = 8000
"""Of a system message that can become part of a template."""
PLACES: Final = ("{input}", "{target}")
"""What a template fills."""
SYSTEM_ROLES: Final = ("system", "developer")
HEADER: Final = re.compile(r"[,;\t|]")
HEADER_LINE: Final = re.compile(r"[\w-]+([,;\t|][\w-]+)+")
JSON_ENDINGS: Final = (".json", ".jsonl", ".ndjson")
CSV_ENDINGS: Final = (".csv", ".tsv")


def read_dataset(
    source: Path | bytes, *, name: str | None = None, input_field: str | None = None, target_field: str | None = None
) -> Dataset:
    """Reads JSON lines, JSON lists and CSV of any separator, whatever the file is called.

    Args:
        source: a file, or its bytes.
        name: what to call bytes in messages.
        input_field, target_field: names of the two fields; without them a known pair, OpenAI's `messages` with one user
            message, one assistant message and perhaps a system message, or what the fields' names and contents say
            (`find_columns`).

    Raises InvalidInput, naming file, line and field.
    """
    title = _title(source, name)
    table = _read_table(title, read_text(title, source), (input_field, target_field))
    return _collect(table, find_columns(table, input_field, target_field))


def read_inputs(source: Path | bytes, *, name: str | None = None, input_field: str | None = None) -> tuple[str, ...]:
    """As `read_unlabeled`, the inputs alone."""
    return tuple(read_unlabeled(source, name=name, input_field=input_field).inputs)


def read_unlabeled(source: Path | bytes, *, name: str | None = None, input_field: str | None = None) -> Dataset:
    """Inputs without targets: the lines of a `.txt` file, of others the input field of each row. The targets are empty.

    Args:
        name: what to call bytes in messages; whether it ends in .txt decides the form.
        input_field: name of the field; without it one that is known, the only one, or the only one with texts.

    Raises InvalidInput, naming file, line and field.
    """
    title = _title(source, name)
    text = read_text(title, source)
    if input_field is None and _is_lines(title, text):
        return _lines_of(title, text)
    table = _read_table(title, text, (input_field,))
    return _collect(table, find_input(table, input_field))


def read_upload(source: bytes, *, name: str, has_targets: bool) -> Dataset | Table:
    """As `read_dataset` or `read_unlabeled`, or the rows if it is not clear which of their fields are wanted.

    Whoever uses the file can say it then. Raises InvalidInput.
    """
    text = read_text(name, source)
    if not has_targets and _is_lines(name, text):
        return _lines_of(name, text)
    table = _read_table(name, text, ())
    columns = guess_columns(table) if has_targets else guess_input(table)
    if columns is None and len(table.names) > 1:
        return table
    return _collect(table, columns or find_columns(table))


def _title(source: Path | bytes, name: str | None) -> str:
    return name or (source.name if isinstance(source, Path) else "data.jsonl")


def _read_table(title: str, text: str, asked: tuple[str | None, ...]) -> Table:
    """What it holds says the content, not the name: a CSV file may be called `.txt` or `.jsonl`."""
    begins_with, lower = text.lstrip()[:1], title.lower()
    if begins_with == "{" or (begins_with == "[" and not lower.endswith(CSV_ENDINGS)):
        table = read_json(title, text)
    else:
        table = read_csv(title, text, KNOWN_NAMES, asked)
        if table.separator is None and lower.endswith(JSON_ENDINGS):
            raise InvalidInput(f"{title}, line 1: is not JSON", param="file")
    if not table.rows:
        raise InvalidInput(f"{title}: there are no examples in this file", param="file")
    return table


def _is_lines(title: str, text: str) -> bool:
    """Whether a file is texts without fields, and not rows under that name, with a header or objects that say input."""
    if not title.lower().endswith(".txt"):
        return False
    first = next(line for line in split_lines(text) if line.strip()).strip()
    names = set(HEADER.split(first.lower())) if HEADER_LINE.fullmatch(first) else names_in(first)
    return names.isdisjoint(INPUT_NAMES | {MESSAGES})


def _lines_of(title: str, text: str) -> Dataset:
    stripped = [(number, line.strip()) for number, line in enumerate(split_lines(text), 1)]
    examples = tuple(Example(line, "", title, number) for number, line in stripped if line)
    num_blank = len(stripped) - len(examples) - (not stripped[-1][1])
    return Dataset(title, examples, (), Reading(Form.LINES, None, False, None, len(examples), num_blank))


def _collect(table: Table, columns: Columns) -> Dataset:
    """The rows as examples. Those that lack an input or a target are set aside, if they are few."""
    examples: list[Example] = []
    faults: list[tuple[int, _IncompleteError]] = []
    for row in table.rows:
        try:
            examples.append(_RowReader(table.title, row).example(columns))
        except _IncompleteError as fault:
            faults.append((row.line, fault))
    if len(faults) > MAX_INCOMPLETE_SHARE * len(table.rows):
        line, first = faults[0]
        others = f"; {len(faults) - 1} more of {len(table.rows)} rows are incomplete" if faults[1:] else ""
        raise InvalidInput(f"{table.title}, line {line}: {first.reason}{others}", param=first.field)
    set_aside = tuple(SetAside(line, fault.reason) for line, fault in faults)
    reading = Reading(
        table.form,
        table.separator,
        table.has_header,
        columns,
        num_rows=len(table.rows),
        num_blank=table.num_blank,
        system=_find_system(table) if columns.input == CHAT.input else "",
    )
    return Dataset(table.title, tuple(examples), set_aside, reading)


def _find_system(table: Table) -> str:
    """The system message that all conversations have in common."""
    systems = {_system_of(row) for row in table.rows}
    system = systems.pop() if len(systems) == 1 else ""
    can_be_template = len(system) <= MAX_SYSTEM_CHARS and not any(place in system for place in PLACES)
    return system if can_be_template and system.strip() else ""


def _system_of(row: Row) -> str:
    messages = row.fields.get(MESSAGES)
    said = [
        message.get("content")
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict) and message.get("role") in SYSTEM_ROLES
    ]
    return said[0] if len(said) == 1 and isinstance(said[0], str) else ""


class _IncompleteError(Exception):
    """A row has no input or no target."""

    def __init__(self, reason: str, field: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


@dataclass(frozen=True, slots=True)
class _RowReader:
    title: str
    row: Row

    def example(self, columns: Columns) -> Example:
        """Raises _IncompleteError, InvalidInput."""
        is_chat = (columns.input, MESSAGES in self.row.fields) == (CHAT.input, True)
        question, answer = self._read_chat(columns) if is_chat else self._read_fields(columns)
        return Example(question, answer.strip(), self.title, self.row.line)

    def _read_fields(self, columns: Columns) -> tuple[str, str]:
        names = [name for name in (columns.input, columns.target) if name]
        if all(self.row.fields.get(name) is None for name in names):
            raise _IncompleteError(f"{' and '.join(names)} {'are' if names[1:] else 'is'} missing", names[0])
        texts = [self._text(name, self.row.fields) for name in names]
        return texts[0], texts[1] if columns.target else ""

    def _read_chat(self, columns: Columns) -> tuple[str, str]:
        role_to_content: dict[str, str] = {}
        messages = self.row.fields[MESSAGES]
        for message in messages if isinstance(messages, list) else []:
            role = message.get("role") if isinstance(message, dict) else None
            role = SYSTEM_ROLES[0] if role in SYSTEM_ROLES else role
            if not isinstance(role, str) or role in role_to_content or message.keys() > {"role", "content"}:
                break
            role_to_content[role] = self._text("content", message)
        else:
            wanted = {"user", "assistant"} if columns.target else {"user"}
            if wanted <= role_to_content.keys() <= {"system", "user", "assistant"}:
                question = [role_to_content[role] for role in ("system", "user") if role in role_to_content]
                return "\n".join(question), role_to_content["assistant"] if columns.target else ""
        raise self._fault(
            "messages must be one user and one assistant message, with at most one system message, each with role and "
            "content alone",
            MESSAGES,
        )

    def _text(self, name: str, fields: Mapping[str, Any]) -> str:
        """A number, and true or false, as JSON writes it."""
        value = fields.get(name)
        if value is None:
            raise _IncompleteError(f"{name} is missing", name)
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        if not isinstance(value, str):
            raise self._fault(f"{name} must be a string", name)
        if not value.strip():
            raise _IncompleteError(f"{name} is empty", name)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._fault(f"{name} holds half of a surrogate pair", name) from error
        return value

    def _fault(self, message: str, param: str) -> InvalidInput:
        return InvalidInput(f"{self.title}, line {self.row.line}: {message}", param=param)
