"""The columns are those that are asked for, or whose names or contents say it; what is not clear is asked."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from app.errors import InvalidInput
from app.measure.example_file import read_dataset, read_inputs, read_upload
from app.measure.reading.columns import Columns, Found
from app.measure.reading.table import Table

NUM_ROWS = 60
RANDOM = random.Random(3)


def sentences() -> list[str]:
    return [
        " ".join(RANDOM.choices(["red", "blue", "green", "cold", "warm", "old", "new", "fast", "slow"], k=6)) + f" {i}"
        for i in range(NUM_ROWS)
    ]


def column(kind: str) -> list[str]:
    """Sixty values of a kind."""
    numbers = range(NUM_ROWS)
    return {
        "text": sentences(),
        "labels": [("billing", "delivery", "other")[i % 3] for i in numbers],
        "words": [f"word{i}" for i in numbers],
        "id": [str(1000 + i) for i in numbers],
        "uuid": [f"{i:08x}-0000-4000-8000-{i:012x}" for i in numbers],
        "date": [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in numbers],
        "time": [f"2024-01-{1 + i % 28:02d} 1{i % 10}:00:00" for i in numbers],
        "score": [f"{i / 7:.3f}" for i in numbers],
        "stars": [str(1 + i % 5) for i in numbers],
        "constant": ["web"] * NUM_ROWS,
        "empty": [""] * NUM_ROWS,
        "link": [f"https://example.com/{i}" for i in numbers],
    }[kind]


def table(name_to_kind: dict[str, str]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(name_to_kind)
    writer.writerows(zip(*map(column, name_to_kind.values()), strict=True))
    return file.getvalue().encode()


def found(name_to_kind: dict[str, str], **asked: str) -> tuple[str, str, Found]:
    columns = read_dataset(table(name_to_kind), name="d.csv", **asked).columns
    return columns.input, columns.target, columns.found


@pytest.mark.parametrize(
    ("name_to_kind", "expected"),
    [
        # a known pair, whatever the case of its letters and whatever else is there
        ({"label": "labels", "text": "text"}, ("text", "label", Found.NAMES)),
        ({"Text": "text", "LABEL": "labels", "category": "labels"}, ("Text", "LABEL", Found.NAMES)),
        ({"id": "id", "input": "text", "target": "text", "text": "text"}, ("input", "target", Found.NAMES)),
        # names that say it
        ({"message": "text", "category": "labels"}, ("message", "category", Found.NAMES)),
        ({"id": "id", "review": "text", "stars": "stars", "sentiment": "labels"}, ("review", "sentiment", Found.NAMES)),
        ({"question": "text", "answer": "text", "source": "constant"}, ("question", "answer", Found.NAMES)),
        # one name and the content
        ({"Kommentar": "text", "category": "labels", "nr": "id"}, ("Kommentar", "category", Found.CONTENT)),
        ({"message": "text", "Art": "labels", "Datum": "date"}, ("message", "Art", Found.CONTENT)),
        # the content alone
        ({"v1": "labels", "v2": "text"}, ("v2", "v1", Found.CONTENT)),
        ({"v1": "labels", "v2": "text", "": "empty"}, ("v2", "v1", Found.CONTENT)),
        ({"a": "text", "b": "text"}, ("a", "b", Found.CONTENT)),
        ({"de": "words", "en": "words"}, ("de", "en", Found.CONTENT)),
        ({"a": "text", "b": "constant"}, None),
        ({"Frage": "text", "Wert": "stars"}, ("Frage", "Wert", Found.CONTENT)),
        (
            {"nr": "id", "u": "uuid", "am": "date", "um": "time", "x1": "score", "wo": "constant", "url": "link",
             "leer": "empty", "Frage": "text", "Art": "labels"},
            ("Frage", "Art", Found.CONTENT),
        ),
        ({"nr": "id", "Frage": "text", "Sterne": "stars"}, ("Frage", "Sterne", Found.CONTENT)),
    ],
)  # fmt: skip
def test_columns_are_found_by_names_and_contents(
    name_to_kind: dict[str, str], expected: tuple[str, str, Found] | None
) -> None:
    assert found(name_to_kind) == (expected or ("a", "b", Found.CONTENT))


@pytest.mark.parametrize(
    "name_to_kind",
    [
        {"a": "text", "b": "text", "c": "labels"},
        {"a": "text", "b": "labels", "c": "labels"},
        {"a": "labels", "b": "labels", "c": "id"},
        {"a": "text", "b": "text", "c": "id"},
        {"message": "text", "category": "labels", "topic": "labels"},
        {"nr": "id", "am": "date", "x": "score"},
        {"nr": "id", "text": "text"},
        {"text": "text", "link": "link"},
        {"a": "uuid", "b": "words"},
    ],
)
def test_what_is_not_clear_is_asked_with_the_names_that_there_are(name_to_kind: dict[str, str]) -> None:
    content = table(name_to_kind)
    with pytest.raises(InvalidInput) as caught:
        read_dataset(content, name="d.csv")
    assert caught.value.param == "input_field"
    for words in (
        "--input-field and --target-field",
        "input_field and target_field",
        f"It has: {', '.join(name_to_kind)}",
    ):
        assert words in caught.value.message
    asked = dict(zip(("input_field", "target_field"), name_to_kind, strict=False))
    assert read_dataset(content, name="d.csv", **asked).columns == Columns(*asked.values(), Found.ASKED)
    upload = read_upload(content, name="d.csv", has_targets=True)
    assert isinstance(upload, Table)
    assert upload.names == tuple(name_to_kind)


def test_one_name_is_enough_where_it_makes_the_other_clear() -> None:
    kinds = {"a": "text", "b": "text", "c": "labels"}
    assert found(kinds, input_field="b") == ("b", "c", Found.CONTENT)
    with pytest.raises(InvalidInput, match="not clear"):
        found(kinds, target_field="c")
    assert found({"x": "text", "y": "text"}, target_field="x") == ("y", "x", Found.CONTENT)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input_field": "none"}, "input_field"),
        ({"input_field": "a", "target_field": "none"}, "target_field"),
        ({"input_field": "a", "target_field": "a"}, "target_field"),
    ],
)
def test_a_field_that_is_not_there_is_refused(asked: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_dataset(table({"a": "text", "b": "labels"}), name="d.csv", **asked)
    assert caught.value.param == param
    assert "none" not in caught.value.message


def test_a_single_column_has_no_targets() -> None:
    with pytest.raises(InvalidInput, match="there is only one field, and examples have an input and a target"):
        read_dataset(table({"text": "text"}), name="d.csv")


def test_the_fields_of_json_are_found_like_columns() -> None:
    rows = [
        {"nr": i, "am": {"tag": i}, "Frage": text, "Art": art, "tags": ["a"]}
        for i, (text, art) in enumerate(zip(column("text"), column("labels"), strict=True))
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    dataset = read_dataset(content)
    assert dataset.columns == Columns("Frage", "Art", Found.CONTENT)
    assert read_inputs(content) == tuple(dataset.inputs)


@pytest.mark.parametrize(
    ("name_to_kind", "expected"),
    [
        ({"text": "text"}, "text"),
        ({"Frage": "text"}, "Frage"),
        ({"nr": "id", "Frage": "text", "am": "date"}, "Frage"),
        ({"message": "text", "reply": "text"}, "message"),
        ({"v1": "labels", "v2": "text"}, "v2"),
        ({"a": "text", "b": "text", "c": "labels"}, None),
    ],
)
def test_the_input_alone_is_found_or_asked(name_to_kind: dict[str, str], expected: str | None) -> None:
    content = table(name_to_kind)
    if expected is None:
        with pytest.raises(InvalidInput, match="not clear which field is the input; name it with --input-field"):
            read_inputs(content, name="d.csv")
        expected = "b"
        assert len(read_inputs(content, name="d.csv", input_field="b")) == NUM_ROWS
        return
    assert read_inputs(content, name="d.csv") == read_inputs(content, name="d.csv", input_field=expected)


def test_a_conversation_gives_inputs_with_or_without_its_answer() -> None:
    rows = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"}]} for i in range(3)]
    assert read_inputs("\n".join(map(json.dumps, rows)).encode()) == ("s\nq0", "s\nq1", "s\nq2")
