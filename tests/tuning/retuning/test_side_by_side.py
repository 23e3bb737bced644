from __future__ import annotations

from app.measure.metrics import wilson_interval
from app.tuning.retuning.side_by_side import SideBySide

LABELS = ("no", "yes")


def test_of_labels_it_is_the_share_of_inputs_on_which_both_say_the_same() -> None:
    new = {"a": "yes", "b": "no", "c": "no", "d": "yes"}
    old = {"a": "yes", "b": "yes", "c": "no", "other": "no"}
    found = SideBySide.make(new, old, {"a": "yes", "b": "yes", "d": "no"}, LABELS)
    assert (found.agreement, found.num_inputs) == (2 / 3, 3)
    assert (found.metric, found.old, found.new, found.num_scored) == ("accuracy", 1.0, 1 / 3, 3)
    low, high = wilson_interval(1 / 3, 3)
    assert found.figures == {
        "validation_agreement": 2 / 3,
        "validation_accuracy": 1 / 3,
        "validation_accuracy_low": low,
        "validation_accuracy_high": high,
        "validation_num_examples": 3.0,
    }


def test_without_the_old_answers_or_right_ones_there_are_no_figures() -> None:
    unasked = SideBySide.make({"a": "yes"}, {}, {"a": "yes"}, LABELS)
    assert (unasked.agreement, unasked.old, unasked.new) == (None, None, 1.0)
    unknown = SideBySide.make({"a": "yes"}, {"a": "yes"}, {}, LABELS)
    assert (unknown.agreement, unknown.old, unknown.new) == (1.0, None, None)
    assert unknown.figures == {"validation_agreement": 1.0}


def test_texts_are_compared_by_their_words() -> None:
    found = SideBySide.make({"a": "the old cat"}, {"a": "the cat"}, {"a": "the old cat"}, ())
    assert (found.agreement, found.metric, found.old, found.new) == (0.8, "rouge_l", 0.8, 1.0)


def test_entities_are_scored_as_entities() -> None:
    found = SideBySide.make({"a": "city = Bonn"}, {"a": "none"}, {"a": "city = Bonn"}, ())
    assert (found.metric, found.old, found.new) == ("entity_f1", 0.0, 1.0)
