"""A look at the data says what was read, what the task is, and what is odd, in words and in figures."""

from __future__ import annotations

import json

from app.measure.example_file import read_dataset, read_unlabeled
from app.measure.reading.labels import TaskData, settle
from app.measure.reading.look import DataLook

ROWS = [
    *(("where is my parcel", "delivery"), ("it costs too much", "billing"), ("good morning to you", "other")) * 20,
    ("where is my parcel", "billing"),
    ("send it", "delivry"),
]
CONTENT = "\n".join(["nr;message;category", *(f"{i};{text};{label}" for i, (text, label) in enumerate(ROWS)), ";;"])


def test_words_say_what_was_read_and_what_is_odd() -> None:
    read, *odd = DataLook.of(settle(read_dataset(CONTENT.encode(), name="m.csv"), None)).in_words(with_quotes=True)
    assert read.startswith("m.csv: 62 rows of CSV separated by semicolons, 1 more is empty; using message as input, ")
    assert read.endswith("category as target (by their names)")
    assert odd == [
        "3 labels: billing (21), delivery (20), other (20)",
        "inputs have 17 to 19 characters (median 18), targets 5 to 8 (median 7)",
        "m.csv: 1 row is set aside: line 63 (its target occurs only once, and 'delivery' seems to be meant: 'delivry')",
        "57 examples repeat an earlier one",
        "1 input has different targets: m.csv, line 2 and m.csv, line 62",
    ]


def test_figures_say_the_same_without_any_text_of_the_rows() -> None:
    told = DataLook.of(settle(read_dataset(CONTENT.encode(), name="m.csv"), None)).as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["files"] == [
        {
            "name": "m.csv",
            "num_examples": 61,
            "num_duplicates": 57,
            "form": "csv",
            "separator": ";",
            "has_header": True,
            "num_rows": 62,
            "num_blank": 1,
            "input_field": "message",
            "target_field": "category",
            "found": "names",
            "system_chars": 0,
            "num_set_aside": 1,
            "set_aside": [{"line": 63, "reason": "its target occurs only once, and 'delivery' seems to be meant"}],
        }
    ]
    assert told["labels"] == {"billing": 21, "delivery": 20, "other": 20}
    assert (told["num_duplicates"], told["num_contradictions"]) == (57, 1)
    assert told["input_chars"] == {"shortest": 17, "median": 18, "longest": 19}
    assert "parcel" not in json.dumps(told)


def test_a_task_that_writes_and_inputs_alone_are_said_to_be_that() -> None:
    written = "\n".join(f'{{"input": "text {i}", "target": "title {i}"}}' for i in range(9)).encode()
    [_, task, _] = DataLook.of(settle(read_dataset(written, name="t.jsonl"), None)).in_words()
    assert task == "a task that writes text: 9 different targets (--labels a,b makes it choose)"
    alone = DataLook.of(TaskData(read_unlabeled(b"a b\n\nc\n", name="i.txt"), None, ()))
    assert alone.in_words() == ["i.txt: 2 rows of text, 1 more is empty", "inputs have 1 to 3 characters (median 2)"]
