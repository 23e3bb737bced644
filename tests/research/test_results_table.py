"""The table says what the results say, weak tasks included."""

from __future__ import annotations

from typing import Any

import pytest

from research.demo.results_table import render_table, weakness


def result(accuracy: float = 0.9, rival: float = 0.6, task: str = "sentiment") -> dict[str, Any]:
    tuned = {"accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02}
    return {
        "task": task,
        "data": "reviews",
        "num_labels": 2,
        "num_test": 1064,
        "majority": 0.51,
        "tuned": {
            "metrics": tuned,
            "num_parameters": 12800,
            "num_bytes": 60000,
            "num_virtual_tokens": 20,
            "kind": "kv",
        },
        "zero_shot": {"metrics": {"accuracy": rival, "num_examples": 1000}, "num_candidates": 5},
    }


def test_a_row_holds_every_figure() -> None:
    (row,) = [line for line in render_table([result()], ["sentiment"]).splitlines() if "`sentiment`" in line]
    for figure in (
        "**90.0**",
        "[88.0, 92.0]",
        "n = 1,064",
        "51.0",
        "60.0 (n = 1,000)",
        "not measured",
        "12,800",
        "60,000",
    ):
        assert figure in row


def test_tasks_come_in_the_order_asked_and_untuned_ones_do_not() -> None:
    untuned = {key: value for key, value in result(task="c").items() if key != "tuned"}
    table = render_table([result(task="a"), result(task="b"), untuned], ["b", "c", "a"])
    assert table.index("`b`") < table.index("`a`")
    assert "`c`" not in table


@pytest.mark.parametrize(
    ("accuracy", "rival", "word"),
    [(0.9, 0.6, ""), (0.6, 0.6, "not clearly better"), (0.52, 0.3, "not clearly better"), (0.65, 0.5, "wrong")],
)
def test_a_weak_task_is_said_to_be_weak(accuracy: float, rival: float, word: str) -> None:
    note = weakness(result(accuracy, rival))
    assert word in note
    assert bool(note) == bool(word)


def test_writing_tasks_are_weak_below_their_rival_or_far_from_usable() -> None:
    writing = result()
    writing["tuned"]["metrics"] = {"rouge_l": 0.2}
    writing["zero_shot"]["metrics"] = {"rouge_l": 0.25, "num_examples": 1000}
    assert "worse than a written prompt" in weakness(writing)
    writing["zero_shot"]["metrics"]["rouge_l"] = 0.2
    assert "no better than a written prompt" in weakness(writing)
    writing["zero_shot"]["metrics"]["rouge_l"] = 0.1
    assert "far from usable" in weakness(writing)
