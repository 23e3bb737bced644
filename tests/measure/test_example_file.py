"""Examples are read whole or refused with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Example, hash_examples
from app.measure.example_file import read_dataset

ONE = (Example("a b", "x"),)


@pytest.mark.parametrize(
    "data",
    [
        b'{"input": "a b", "target": "x"}\n',
        b'{"text": "a b", "label": "x"}\n\n',
        b'{"prompt": "a b", "completion": " x"}',
        b'\xef\xbb\xbf{"input": "a b", "target": "x"}\r\n',
        b'{"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "x"}]}',
    ],
)
def test_every_known_row_form_gives_the_same_example(data: bytes) -> None:
    assert read_dataset(data, name="d.jsonl").examples == ONE


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_comes_before_the_input(role: str) -> None:
    messages = [{"role": r, "content": c} for r, c in ((role, "be brief"), ("user", "a"), ("assistant", "x"))]
    assert read_dataset(json.dumps({"messages": messages}).encode()).examples == (Example("be brief\na", "x"),)


def test_csv_with_bom_crlf_quotes_and_line_breaks_in_fields() -> None:
    data = '\ufefftext,label\r\n"one, ""two""\r\nthree",x\r\nfour,y\r\n'.encode()
    assert read_dataset(data, name="d.csv").examples == (Example('one, "two"\r\nthree', "x"), Example("four", "y"))


def test_fields_can_be_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("id,review,stars,input\n1,good,5,no\n")
    assert read_dataset(path, input_field="review", target_field="stars").examples == (Example("good", "5"),)


GOOD = b'{"input": "a", "target": "x"}\n'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.jsonl", b"", "d.jsonl: the file is empty"),
        ("d.jsonl", b" \r\n", "d.jsonl: the file is empty"),
        ("d.csv", b"text,label\n", "d.csv: there are no examples in this file"),
        ("d.jsonl", GOOD + b"{oops}\n", "d.jsonl, line 2: is not JSON"),
        ("d.jsonl", GOOD + b"\n[1]\n", "d.jsonl, line 3: is not a JSON object"),
        ("d.jsonl", GOOD + b'{"input": "a"}\n', "d.jsonl, line 2: target is missing"),
        ("d.jsonl", GOOD + b'{"label": "a"}\n', "d.jsonl, line 2: input and target are missing"),
        ("d.jsonl", GOOD + b'{"question": "a"}\n', "d.jsonl, line 2: input and target are missing"),
        ("d.jsonl", GOOD + b'{"input": "a", "target": [3]}\n', "d.jsonl, line 2: target must be a string"),
        ("d.jsonl", GOOD + b'{"input": "a", "target": null}\n', "d.jsonl, line 2: target is missing"),
        ("d.jsonl", GOOD + b'{"input": "a", "target": "  "}\n', "d.jsonl, line 2: target is empty"),
        (
            "d.jsonl",
            GOOD + b'{"input": "\\ud800", "target": "x"}\n',
            "d.jsonl, line 2: input holds half of a surrogate",
        ),
        ("d.jsonl", GOOD + '{"input": "é", "target": "x"}\n'.encode("latin-1"), "d.jsonl, line 2: is not UTF-8"),
        (
            "d.jsonl",
            GOOD + b'{"input": "' + b"a" * 10 * 2**20 + b'", "target": "x"}',
            "d.jsonl, line 2: is longer than",
        ),
        ("d.jsonl", GOOD + b"[" * 100_000, "d.jsonl, line 2: is not JSON"),
        ("d.jsonl", GOOD + b'{"input": ' + b"9" * 10_000 + b"}", "d.jsonl, line 2: is not JSON"),
        ("d.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', "d.jsonl, line 1: messages must be one user"),
        ("d.jsonl", b'{"messages": "hello"}', "d.jsonl, line 1: messages must be one user"),
        ("d.jsonl", b'{"messages": [{"role": "user"}]}', "d.jsonl, line 1: content is missing"),
        ("d.csv", b"text,label\na,x\nb,y,z\n", "d.csv, line 3: has more fields than the header"),
        ("d.csv", b"text,label\na,x\nb\n", "d.csv, line 3: label is missing"),
        ("d.csv", b'text,label\na,x\n"b,y\n', "d.csv, line 3: is not CSV"),
        ("d.csv", b"text,label\n" + b"a" * 2**21 + b",x\n", "d.csv, line 2: is not CSV"),
        ("d.csv", b"text,label,text\na,x,b\n", "d.csv, line 1: two columns have the same name"),
        ("d.jsonl", GOOD + b'{"input": " ", "target": "x"}', "d.jsonl, line 2: input is empty"),
        ("d.jsonl", '{"input": "a", "target": "x"}'.encode("utf-16-le"), "d.jsonl, line 1: is not UTF-8"),
        ("d.jsonl", b'{"messages": [{"role": ["user"], "content": "a"}]}', "d.jsonl, line 1: messages must be one"),
        (
            "d.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
            "d.jsonl, line 1: content is empty",
        ),
        (
            "d.jsonl",
            b'{"messages": [{"role": "user", "content": "a", "name": "b"}, {"role": "assistant", "content": "x"}]}',
            "d.jsonl, line 1: messages must be one user",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(name: str, data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_dataset(data, name=name)
    assert caught.value.message.startswith(message)


def test_the_refused_text_is_not_in_the_message() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_dataset(b'{"input": "secret", "target": [5]}', name="d.jsonl")
    assert "secret" not in caught.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.jsonl: cannot be read"):
        read_dataset(tmp_path / "none.jsonl")


def test_duplicates_are_counted_and_kept() -> None:
    dataset = read_dataset(GOOD * 3)
    assert (len(dataset.examples), dataset.num_duplicates) == (3, 2)


def test_the_data_hash_is_of_the_examples_and_not_of_the_format() -> None:
    as_csv = read_dataset(b"text,label\na,x\n", name="d.csv")
    assert as_csv.data_hash == read_dataset(GOOD).data_hash
    assert as_csv.data_hash != hash_examples([Example("a", "y")])


def test_a_wrong_label_is_refused_with_file_and_line() -> None:
    dataset = read_dataset(b"\n" + GOOD + b"\r\n" + b'{"input": "b", "target": "y"}\r\n', name="d.jsonl")
    assert [example.line for example in dataset.examples] == [2, 4]
    dataset.require_labels(["x", "y"])
    with pytest.raises(InvalidInput, match=r"d\.jsonl, line 4: the target is none of the 1 labels") as caught:
        dataset.require_labels(["x"])
    assert caught.value.quote == "y"
