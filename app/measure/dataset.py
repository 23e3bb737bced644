"""Examples to tune and to measure with: read from JSON lines or CSV, checked line by line, split, described."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InvalidInput

MAX_FILE_BYTES = 512 * 2**20
MAX_LINE_BYTES = 2**20
MAX_ROWS = 1_000_000
MAX_LABELS = 1000
MIN_ROWS_PER_LABEL = 3
FIELD_PAIRS = (("input", "target"), ("text", "label"), ("prompt", "completion"))


@dataclass(frozen=True, slots=True)
class Example:
    """What stands in the template's `{input}`, and the answer expected at `{target}`."""

    input: str
    target: str


@dataclass(frozen=True)
class Dataset:
    """The examples of one file.

    Attributes:
        name: what error messages call the file.
        examples: in file order, duplicates included.
        lines: of the file, counted from 1, where each example stands; empty where there is no file.
        num_duplicates: examples equal to an earlier one in input and target.
        data_hash: sha256 of the examples, whatever file format they came in.
    """

    name: str
    examples: tuple[Example, ...]
    lines: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def num_duplicates(self) -> int:
        return len(self.examples) - len(set(self.examples))

    @property
    def data_hash(self) -> str:
        return hash_examples(self.examples)

    def place(self, index: int) -> str:
        """Where an example stands, for messages: file and line."""
        return f"{self.name}, line {self.lines[index]}" if self.lines else f"{self.name}, example {index + 1}"

    def require_labels(self, labels: Sequence[str]) -> None:
        """Raises InvalidInput, with file and line, when a target is none of the labels."""
        known = set(labels)
        for index, example in enumerate(self.examples):
            if example.target not in known:
                raise InvalidInput(
                    f"{self.place(index)}: the target is none of the {len(known)} labels", param="labels"
                )


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


def read_examples(
    source: Path | bytes, *, name: str | None = None, input_field: str | None = None, target_field: str | None = None
) -> list[Example]:
    """The examples of `read_dataset` alone."""
    return list(read_dataset(source, name=name, input_field=input_field, target_field=target_field).examples)


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


def hash_examples(examples: Sequence[Example]) -> str:
    """sha256, 64 hex digits, over inputs and targets in order: that of `pack_examples`."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_pack(example))
    return digest.hexdigest()


def pack_examples(examples: Sequence[Example]) -> bytes:
    """The one form of examples whose bytes are kept and hashed: a line of JSON each, `["input", "target"]`, ASCII."""
    return b"".join(map(_pack, examples))


def unpack_examples(content: bytes) -> list[Example]:
    """Args: content: of `pack_examples`, its hash checked."""
    return [Example(*json.loads(line)) for line in content.splitlines()]


def split_examples(examples: Sequence[Example], validation_share: float = 0.1) -> tuple[list[Example], list[Example]]:
    """(train, validation), by a hash of the input: the same example falls on the same side in every file.

    Equal inputs stay together, so validation never repeats a training input.
    """
    train: list[Example] = []
    validation: list[Example] = []
    for example in examples:
        point = int.from_bytes(hashlib.sha256(example.input.encode()).digest()[:8], "big") / 2**64
        (validation if point < validation_share else train).append(example)
    if not train or not validation:
        raise InvalidInput("there are too few examples to set some aside for validation: give a validation file")
    return train, validation


def find_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The distinct targets, sorted, when they look like labels: few, short, and nearly all seen several times.

    Empty when the task is to write text.
    """
    target_to_count = Counter(example.target for example in examples)
    num_rare = sum(count < MIN_ROWS_PER_LABEL for count in target_to_count.values())
    is_labelled = (
        2 <= len(target_to_count) <= MAX_LABELS
        and num_rare <= len(target_to_count) // 10
        and len(target_to_count) * MIN_ROWS_PER_LABEL <= len(examples)
        and max(map(len, target_to_count)) <= 100
    )
    return tuple(sorted(target_to_count)) if is_labelled else ()


def check_labels(examples: Sequence[Example], labels: Sequence[str], name: str) -> None:
    """Raises InvalidInput, with the example's number, when a target is none of the labels."""
    known = set(labels)
    for number, example in enumerate(examples, 1):
        if example.target not in known:
            raise InvalidInput(
                f"{name}: the target of example {number} is none of the {len(known)} labels", param="labels"
            )


def _pack(example: Example) -> bytes:
    return json.dumps([example.input, example.target]).encode() + b"\n"


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
