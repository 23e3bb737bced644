"""Examples are split by what they say, and their labels found and checked."""

from __future__ import annotations

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, split_examples
from app.measure.reading.labels import find_labels


def test_the_split_is_a_tenth_and_depends_on_the_input_alone() -> None:
    examples = [Example(f"text {i}", str(i % 3)) for i in range(2000)]
    train, validation = split_examples(examples)
    assert 160 < len(validation) < 240
    assert sorted(train + validation, key=hash) == sorted(examples, key=hash)
    assert split_examples(list(reversed(examples)))[1] == list(reversed(validation))
    assert not {e.input for e in train} & {e.input for e in validation}


def test_a_split_that_leaves_one_side_empty_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too few"):
        split_examples([Example("a", "x")])


def test_few_targets_seen_several_times_are_labels() -> None:
    assert find_labels([Example(str(i), "ab"[i % 2]) for i in range(10)]) == ("a", "b")


@pytest.mark.parametrize(
    "targets",
    [[f"title {i}" for i in range(50)], ["none"] * 30 + [f"person = {i}" for i in range(20)], ["same"] * 20],
)
def test_open_targets_are_no_labels(targets: list[str]) -> None:
    assert find_labels([Example("a", target) for target in targets]) == ()


def test_a_target_that_is_no_label_is_refused_with_its_number() -> None:
    with pytest.raises(InvalidInput, match="train, example 2: the target is none of the 2 labels"):
        Dataset("train", (Example("a", "x"), Example("b", "z"))).require_labels(["x", "y"])
