"""A classification stays one when a few rows have odd targets, which are named; one class is no task."""

from __future__ import annotations

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example
from app.measure.reading.labels import TaskData, find_labels, settle
from app.measure.reading.look import DataLook


def dataset(*targets_and_counts: tuple[str, int], name: str = "d.csv") -> Dataset:
    """Line 2 has the first example, as below a header."""
    targets = [target for target, count in targets_and_counts for _ in range(count)]
    return Dataset(name, tuple(Example(f"text {i}", target, name, i + 2) for i, target in enumerate(targets)))


def labels_and_lines(data: TaskData) -> tuple[tuple[str, ...], list[int]]:
    return data.labels, [row.line for row in data.train.set_aside]


@pytest.mark.parametrize(
    ("counts", "labels", "lines"),
    [
        ([("yes", 150), ("no", 150), ("mabye", 1)], ("no", "yes"), [302]),
        ([("yes", 600), ("no", 398), ("odd", 2)], ("no", "yes"), [1000, 1001]),
        ([("yes", 6), ("no", 5), ("nno", 1)], ("no", "yes"), [13]),
        ([("yes", 150), ("no", 140), *((f"no{i}", 1) for i in range(10))], ("no", "yes"), list(range(292, 302))),
        ([("yes", 5000), ("no", 4995), ("rare", 5)], ("no", "rare", "yes"), []),
        ([("yes", 90), ("Yes", 1), ("no", 90)], ("no", "yes"), [92]),
        ([*((f"intent {i}", 9) for i in range(30)), ("a", 2), ("b", 1)], None, [272, 273, 274]),
    ],
)
def test_rows_of_rare_targets_are_set_aside_by_line(
    counts: list[tuple[str, int]], labels: tuple[str, ...] | None, lines: list[int]
) -> None:
    data = settle(dataset(*counts), None)
    expected = tuple(sorted(f"intent {i}" for i in range(30))) if labels is None else labels
    assert labels_and_lines(data) == (expected, lines)
    assert len(data.train.examples) == sum(count for _, count in counts) - len(lines)
    assert {example.target for example in data.train.examples} == set(expected)


def test_a_row_that_is_set_aside_says_why_and_what_may_be_meant() -> None:
    data = settle(dataset(("positive", 90), ("negative", 90), ("Positive", 1), ("negatve", 2), ("fish", 1)), None)
    said = [(row.reason, row.quote) for row in data.train.set_aside]
    assert said == [
        ("its target occurs only once, and 'positive' seems to be meant", "Positive"),
        ("its target occurs only twice, and 'negative' seems to be meant", "negatve"),
        ("its target occurs only twice, and 'negative' seems to be meant", "negatve"),
        ("its target occurs only once", "fish"),
    ]
    look = DataLook.of(data)
    assert any("4 rows are set aside: line 182 (its target occurs" in line for line in look.in_words())
    assert "seems to be meant: 'Positive')" in "\n".join(look.in_words(with_quotes=True))
    assert "fish" not in "\n".join(look.in_words()) + str(look.as_dict())


def test_rows_are_set_aside_in_validation_too_and_counted_in_both() -> None:
    train, validation = dataset(("a", 20), ("b", 20), ("c", 2)), dataset(("a", 9), ("b", 9), ("d", 1), name="v.csv")
    data = settle(train, validation)
    assert data.labels == ("a", "b")
    assert [len(each.set_aside) for each in data.datasets] == [2, 1]
    assert "c" in settle(train, dataset(("a", 9), ("b", 9), ("c", 3), name="v.csv")).labels


@pytest.mark.parametrize(
    "counts",
    [
        [(f"title {i}", 1) for i in range(50)],
        [("none", 30), *((f"person = {i}", 1) for i in range(20))],
        [("none", 970), *((f"person = {i}", 1) for i in range(30))],
        [("yes", 80), ("no", 70), ("maybe later", 30), *((f"answer {i}", 1) for i in range(20))],
        [*((f"city {i}", 4 + i % 5) for i in range(200)), *((f"town {i}", 1) for i in range(50))],
        [("x" * 200, 10), ("y" * 200, 10)],
        [("a", 2), ("b", 2)],
        [("yes", 3), ("no", 2)],
    ],
)
def test_answers_of_an_open_set_are_written(counts: list[tuple[str, int]]) -> None:
    data = settle(dataset(*counts), None)
    assert labels_and_lines(data) == ((), [])
    assert find_labels(data.train.examples) == ()


def test_what_is_left_of_one_label_is_refused_with_the_rows_of_the_others() -> None:
    with pytest.raises(InvalidInput) as caught:
        settle(dataset(("yes", 998), ("no", 2)), None)
    assert "all but 2 of 1000 targets are the same, and the others are too rare" in caught.value.message
    assert "(d.csv, line 1000; d.csv, line 1001)" in caught.value.message
    assert (caught.value.param, caught.value.quote) == ("labels", "no")
    assert settle(dataset(("yes", 998), ("no", 2)), None, ["yes", "no"]).labels == ("yes", "no")
    assert settle(dataset(("yes", 998), ("no", 2)), None, []).labels == ()


@pytest.mark.parametrize("labels", [None, ["a", "b"]])
def test_one_class_is_refused(labels: list[str] | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        settle(dataset(("a", 40)), dataset(("a", 4), name="v.csv"), labels)
    assert caught.value.message == "d.csv: every target is the same: there is nothing to tell apart"
    assert caught.value.quote == "a"


def test_a_task_that_is_said_to_write_may_always_write_the_same() -> None:
    assert settle(dataset(("a", 40)), None, []).labels == ()


def test_labels_that_are_given_are_kept_whatever_their_number() -> None:
    data = settle(dataset(("a", 30), ("b", 1), ("A", 1)), None, ["b", "A", "a"])
    assert labels_and_lines(data) == (("b", "A", "a"), [])
    with pytest.raises(InvalidInput, match=r"v\.csv, line 11: the target is none of the 2 labels") as caught:
        settle(dataset(("a", 9), ("b", 9)), dataset(("a", 9), ("secret " * 30, 1), name="v.csv"), ["a", "b"])
    assert caught.value.quote.startswith("secret secret")
    assert len(caught.value.quote) == 60
    assert "secret" not in caught.value.message


def test_labels_that_differ_in_case_alone_are_pointed_out() -> None:
    look = DataLook.of(settle(dataset(("spam", 20), ("Spam", 5), ("ham", 20)), None))
    assert look.lookalikes == (("Spam", "spam"),)
    assert "'Spam' (5) and 'spam' (20) are different labels that differ only in case or blanks" in look.in_words()
