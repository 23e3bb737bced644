"""Files of examples, JSON lines or CSV: read, and checked line by line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
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
        name: what to call bytes in messages; its ending chooses the format.
        input_field, target_field: names of the two fields; without them the first pair of FIELD_PAIRS that a row has,
            or OpenAI's `messages` with one user message, one assistant message and perhaps a system message.

    Raises InvalidInput, naming file, line and field.
    """
    title = name or (source.name if isinstance(source, Path) else "data.jsonl")
    fields = _asked_fields(input_field, target_field)
    text = _decode(title, _read_bytes(title, source))
    rows = _csv_rows(title, text) if title.lower().endswith(".csv") else _json_rows(title, text)
    found = [(line, _example(title, line, row, fields)) for line, row in rows]
    if not found:
        raise InvalidInput(f"{title}: there are no examples in this file", param="file")
    return Dataset(title, tuple(example for _, example in found), tuple(line for line, _ in found))


def read_inputs(source: Path | bytes, *, name: str | None = None) -> tuple[str, ...]:
    """Inputs without targets: of a `.txt` file its lines, of others the input field of each row.

    Args: name: what to call bytes in messages; its ending chooses the format.

    Raises InvalidInput, naming file, line and field.
    """
    title = name or (source.name if isinstance(source, Path) else "data.jsonl")
    text = _decode(title, _read_bytes(title, source))
    if title.lower().endswith(".txt"):
        found = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        rows = _csv_rows(title, text) if title.lower().endswith(".csv") else _json_rows(title, text)
        found = [_text(title, line, row, _input_field(title, line, row)) for line, row in rows]
    if not found:
        raise InvalidInput(f"{title}: there are no inputs in this file", param="file")
    return tuple(found)


def _asked_fields(input_field: str | None, target_field: str | None) -> tuple[str, str] | None:
    if (input_field is None) != (target_field is None):
        raise InvalidInput("give both input_field and target_field, or neither", param="input_field")
    return None if input_field is None or target_field is None else (input_field, target_field)


def _read_bytes(title: str, source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            if source.stat().st_size > MAX_FILE_BYTES:
                raise InvalidInput(f"{title}: the file is larger than {MAX_FILE_BYTES} bytes", param="file")
            data = source.read_bytes()
        except OSError as error:
            raise InvalidInput(f"{title}: cannot be read: {error.strerror}", param="file") from error
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"{title}: the file is larger than {MAX_FILE_BYTES} bytes", param="file")
    if not data.strip():
        raise InvalidInput(f"{title}: the file is empty", param="file")
    return data


def _decode(title: str, data: bytes) -> str:
    """UTF-8, with or without a byte order mark. UTF-16 of plain ASCII would pass for it, were it not for its NULs."""
    fault = data.find(b"\0")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        line = data.count(b"\n", 0, fault) + 1
        raise InvalidInput(f"{title}, line {line}: is not UTF-8; save the file as UTF-8", param="file")
    return text


def _json_rows(title: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        _check_size(title, line, len(content))
        yield line, _json_row(title, line, content)


def _json_row(title: str, line: int, content: str) -> Mapping[str, Any]:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number or a nesting is too large"
        raise InvalidInput(f"{title}, line {line}: is not JSON: {reason}", param="file") from error
    if not isinstance(row, dict):
        raise InvalidInput(f"{title}, line {line}: is not a JSON object", param="file")
    return row


def _csv_rows(title: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        _check_header(title, reader.fieldnames or ())
        for row in reader:
            line = reader.line_num
            if None in row:
                raise InvalidInput(f"{title}, line {line}: has more fields than the header", param="file")
            yield line, row
    except csv.Error as error:
        raise InvalidInput(f"{title}, line {line + 1}: is not CSV: {error}", param="file") from error


def _check_header(title: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise InvalidInput(f"{title}, line 1: two columns have the same name", param="file")


def _check_size(title: str, line: int, num_chars: int) -> None:
    if num_chars > MAX_LINE_BYTES:
        raise InvalidInput(f"{title}, line {line}: is longer than {MAX_LINE_BYTES} characters", param="file")
    if line > MAX_ROWS:
        raise InvalidInput(f"{title}, line {line}: there are more than {MAX_ROWS} lines", param="file")


def _example(title: str, line: int, row: Mapping[str, Any], fields: tuple[str, str] | None) -> Example:
    if fields is None and "messages" in row:
        return _chat_example(title, line, row["messages"])
    input_field, target_field = fields or _known_fields(title, line, row)
    return Example(_text(title, line, row, input_field), _text(title, line, row, target_field).strip())


def _known_fields(title: str, line: int, row: Mapping[str, Any]) -> tuple[str, str]:
    for pair in FIELD_PAIRS:
        if set(pair) <= row.keys():
            return pair
    for input_field, target_field in FIELD_PAIRS:
        if input_field in row:
            raise InvalidInput(f"{title}, line {line}: {target_field} is missing", param=target_field)
        if target_field in row:
            raise InvalidInput(f"{title}, line {line}: {input_field} is missing", param=input_field)
    raise InvalidInput(f"{title}, line {line}: input and target are missing", param="input")


def _input_field(title: str, line: int, row: Mapping[str, Any]) -> str:
    for name, _ in FIELD_PAIRS:
        if name in row:
            return name
    raise InvalidInput(f"{title}, line {line}: input is missing", param="input")


def _text(title: str, line: int, row: Mapping[str, Any], field: str) -> str:
    if row.get(field) is None:
        raise InvalidInput(f"{title}, line {line}: {field} is missing", param=field)
    value = row[field]
    if not isinstance(value, str):
        raise InvalidInput(f"{title}, line {line}: {field} must be a string", param=field)
    if not value.strip():
        raise InvalidInput(f"{title}, line {line}: {field} is empty", param=field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{title}, line {line}: {field} holds half of a surrogate pair", param=field) from error
    return value


def _chat_example(title: str, line: int, messages: object) -> Example:
    role_to_content: dict[str, str] = {}
    for message in messages if isinstance(messages, list) else []:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role in role_to_content or message.keys() > {"role", "content"}:
            break
        role_to_content[role] = _text(title, line, message, "content")
    else:
        if {"user", "assistant"} <= role_to_content.keys() <= {"system", "user", "assistant"}:
            question = [role_to_content[role] for role in ("system", "user") if role in role_to_content]
            return Example("\n".join(question), role_to_content["assistant"].strip())
    raise InvalidInput(
        f"{title}, line {line}: messages must be one user and one assistant message, with at most one system message, "
        "each with role and content alone",
        param="messages",
    )
