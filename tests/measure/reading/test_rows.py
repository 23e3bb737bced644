"""Which form a file has says its content; separators and headers are found; every row knows its line."""

from __future__ import annotations

import json

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.example_file import read_dataset, read_inputs
from app.measure.reading.table import Form

ROWS = [("so good, really; yes", "a"), ("bad | very", "b"), ('he said "no"', "a"), ("two\nlines", "b")]
EXAMPLES = tuple(Example(*row) for row in ROWS)


def written(separator: str, rows: list[tuple[str, str]], header: str = "text,label") -> str:
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows]
    return "\r\n".join([header.replace(",", separator), *map(separator.join, quoted), ""])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.txt", "d.jsonl", "d"])
def test_the_separator_is_found_whatever_the_file_is_called(separator: str, name: str) -> None:
    dataset = read_dataset(written(separator, ROWS).encode(), name=name)
    assert dataset.examples == EXAMPLES
    assert dataset.reading.form is Form.CSV
    assert dataset.reading.separator == separator


def test_a_line_that_names_the_separator_is_no_row() -> None:
    dataset = read_dataset(b"sep=;\r\ntext;label\r\na, b;x\r\n", name="d.csv")
    assert dataset.examples == (Example("a, b", "x"),)
    assert dataset.examples[0].place == "d.csv, line 3"


def test_texts_that_hold_another_separator_do_not_decide() -> None:
    content = "text;label\n" + "\n".join(f"one, two, three {i};{'ab'[i % 2]}" for i in range(9))
    assert read_dataset(content.encode(), name="d.csv").reading.separator == ";"


def test_quotes_that_do_not_match_belong_to_texts_between_tabs() -> None:
    content = 'text\tlabel\nthe 5" disk\ta\n"not closed\tb\n'
    assert [e.input for e in read_dataset(content.encode(), name="d.tsv").examples] == ['the 5" disk', '"not closed']
    with pytest.raises(InvalidInput, match="line 3: is not CSV"):
        read_dataset(content.replace("\t", ",").encode(), name="d.csv")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("name", "is_list"),
    [("d.json", True), ("d.jsonl", True), ("d.txt", True), ("d.json", False), ("d.txt", False), ("d.csv", False)],
)
def test_json_is_lines_a_list_or_objects_over_several_lines(name: str, indent: int | None, is_list: bool) -> None:
    objects = [{"text": text, "label": label} for text, label in ROWS]
    content = json.dumps(objects, indent=indent)
    if not is_list:
        content = "\n".join(json.dumps(each, indent=indent) for each in objects)
    dataset = read_dataset(content.encode(), name=name)
    assert dataset.examples == EXAMPLES
    lines = [example.line for example in dataset.examples]
    step = 1 if indent is None else 4
    if indent is None and is_list:
        assert lines == [1, 1, 1, 1]
    else:
        assert lines == [1 + (indent is not None and is_list) + step * i for i in range(4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a", "label": "x"},\n {"text": "b", "label":}]', "line 2: is not JSON"),
        ('[{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}]', "line 2: is not JSON"),
        ('[{"text": "a", "label": "x"},\n', "line 2: is not JSON"),
        ('[{"text": "a", "label": "x"}] []', "line 1: is not JSON"),
        ('[{"text": "a", "label": "x"},\n\n["b", "y"]]', "line 3: is not a JSON object"),
        ('{"examples": [{"text": "a", "label": "x"}]}', "is one object; give the list of examples inside it alone"),
        ("[" * 100_000, "line 1: is not"),
    ],
)
def test_json_that_is_none_is_refused_with_its_line(content: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_dataset(content.encode(), name="d.json")
    assert message in caught.value.message


def test_the_line_of_a_row_counts_the_lines_in_its_cells() -> None:
    lines = [example.line for example in read_dataset(written(",", ROWS).encode(), name="d.csv").examples]
    assert lines == [2, 3, 4, 6]


def test_empty_rows_and_columns_of_a_spreadsheet_are_left_out_and_counted() -> None:
    content = "text;label;;\r\na;x;;\r\n;;;\r\nb;y;;\r\n;;;\r\n\r\n"
    dataset = read_dataset(content.encode(), name="d.csv")
    assert dataset.examples == (Example("a", "x"), Example("b", "y"))
    assert (dataset.reading.num_rows, dataset.reading.num_blank) == (2, 3)
    with pytest.raises(InvalidInput, match="line 2: has more fields than the header; a text that holds the separator"):
        read_dataset(b"text,label\na,x,and,more\n", name="d.csv")


@pytest.mark.parametrize("first", ["a gorgeous and witty film", "7", "Good.", "x" * 80])
def test_a_first_line_that_is_an_example_is_read_as_one(first: str) -> None:
    content = "\n".join([f"{first},yes", *(f"text number {i},{'no' if i % 2 else 'yes'}" for i in range(20))])
    dataset = read_dataset(content.encode(), name="d.csv")
    assert (len(dataset.examples), dataset.examples[0]) == (21, Example(first, "yes"))
    assert not dataset.reading.has_header
    assert (dataset.columns.input, dataset.columns.target) == ("column 1", "column 2")
    assert read_dataset(content.encode(), name="d.csv", input_field="column 1").examples == dataset.examples


def test_a_label_that_is_called_like_a_column_makes_no_header() -> None:
    content = "\n".join(f"words of row {i},{('question', 'answer')[i % 2]}" for i in range(20))
    dataset = read_dataset(content.encode(), name="d.csv")
    assert (len(dataset.examples), dataset.columns.target) == (20, "column 2")


def test_a_first_line_of_names_is_a_header() -> None:
    content = "\n".join(["Frage,Antwort", *(f"text number {i},{'no' if i % 2 else 'yes'}" for i in range(20))])
    assert len(read_dataset(content.encode(), name="d.csv").examples) == 20


def test_a_few_rows_without_input_or_target_are_set_aside_and_many_are_refused() -> None:
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(20)]
    rows[4], rows[9] = "text 4,", ",a"
    dataset = read_dataset("\n".join(["text,label", *rows]).encode(), name="d.csv")
    assert len(dataset.examples) == 18
    assert [(row.line, row.reason) for row in dataset.set_aside] == [(6, "label is empty"), (11, "text is empty")]
    rows[5] = "text 5"
    with pytest.raises(InvalidInput) as caught:
        read_dataset("\n".join(["text,label", *rows]).encode(), name="d.csv")
    assert caught.value.message == "d.csv, line 6: label is empty; 2 more of 20 rows are incomplete"


def test_numbers_are_read_as_json_writes_them() -> None:
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": -2.5}\n{"text": 3, "label": true}'
    assert read_dataset(rows.encode()).examples == (Example("a", "1"), Example("b", "-2.5"), Example("3", "true"))


@pytest.mark.parametrize("name", ["inputs.txt", "inputs.csv", "inputs.jsonl"])
@pytest.mark.parametrize("content", ["text,label\na b,x\nc,y\n", '{"text": "a b", "label": "x"}\n{"text": "c"}\n'])
def test_rows_that_are_called_text_are_rows(name: str, content: str) -> None:
    assert read_inputs(content.encode(), name=name) == ("a b", "c")


def test_a_text_is_lines_even_where_they_hold_separators_or_braces() -> None:
    content = "Please input, then press\n{x, y}\nno; really\n"
    assert read_inputs(content.encode(), name="inputs.txt") == ("Please input, then press", "{x, y}", "no; really")
