"""Each metric on answers whose score can be counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.measure import metrics


def test_labels_are_counted_by_class() -> None:
    targets, predictions = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    assert metrics.accuracy(predictions, targets) == 0.75
    assert metrics.macro_f1(predictions, targets) == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics.confusion(predictions, targets, ["a", "b"]) == ((2, 1), (0, 1))


def test_each_label_has_its_own_precision_and_recall() -> None:
    targets, predictions = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    found = {each.label: each for each in metrics.per_label(predictions, targets, ["b", "a", "unseen"])}
    assert list(found) == ["b", "a", "unseen"]
    assert (found["a"].precision, found["a"].recall, found["a"].num_examples) == (1.0, pytest.approx(2 / 3), 3)
    assert (found["b"].precision, found["b"].recall, found["b"].num_examples) == (0.5, 1.0, 1)
    assert (found["unseen"].f1, found["unseen"].num_examples) == (0.0, 0)


def test_exact_match_ignores_outer_blanks_only() -> None:
    assert metrics.exact_match([" x y ", "X"], ["x y", "x"]) == 0.5


def test_token_f1_counts_words_and_rouge_l_their_order() -> None:
    assert metrics.token_f1(["the cat sat"], ["sat the dog"]) == pytest.approx(2 / 3)
    assert metrics.rouge_l(["the cat sat"], ["sat the dog"]) == pytest.approx(1 / 3)
    assert metrics.rouge_l(["A B, c d"], ["a x b d"]) == pytest.approx(0.75)


def test_entities_need_type_and_words() -> None:
    targets = ["person = Ann Lee; location = Rome", "none", "group = ACME"]
    assert metrics.entity_f1(targets, targets) == 1.0
    assert metrics.entity_f1(["person = Ann Lee; person = Rome", "none", "none"], targets) == pytest.approx(2 / 5)
    assert metrics.entity_f1(["none"] * 3, targets) == 0.0
    assert metrics.entity_f1(["none"], ["none"]) == 1.0


def test_entity_lists_are_recognized_by_their_form() -> None:
    assert metrics.is_entity_list(["none", "person = Ann; location = Rome"])
    assert not metrics.is_entity_list(["none", "none"])
    assert not metrics.is_entity_list(["a = b", "An ordinary headline"])


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    hits, n = counts
    low, high = metrics.wilson_interval(hits / n, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1


def test_the_interval_is_wilsons() -> None:
    assert metrics.wilson_interval(0.8, 100) == pytest.approx((0.7112, 0.8666), abs=1e-4)


@given(st.lists(st.sampled_from("ab"), max_size=7), st.lists(st.sampled_from("ab"), max_size=7))
def test_rouge_l_finds_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    def slow(x: list[str], y: list[str]) -> int:
        if not x or not y:
            return 0
        return slow(x[1:], y[1:]) + 1 if x[0] == y[0] else max(slow(x[1:], y), slow(x, y[1:]))

    total = len(first) + len(second)
    expected = 2 * slow(first, second) / total if total else 1.0
    assert metrics.rouge_l([" ".join(first)], [" ".join(second)]) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["exact_match", "token_f1", "rouge_l", "entity_f1"])
def test_what_examples_add_to_a_metric_adds_up_to_it(metric: str) -> None:
    predictions = ["person = Ann", "none", "person = Bob; group = X", "a b c"]
    targets = ["person = Ann; group = Y", "none", "person = Bob; group = X", "location = c"]
    shares = [metrics.shares_of(metric, *pair) for pair in zip(predictions, targets, strict=True)]
    reached, possible = map(sum, zip(*shares, strict=True))
    assert reached / possible == pytest.approx(getattr(metrics, metric)(predictions, targets))
