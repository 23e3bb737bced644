"""What prompt lookup would gain is counted as it would be decoded, and its steps compute what they say."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from app.model.backbone import Backbone
from benchmarks import lookup
from benchmarks.lookup import LONGEST_MATCH, Answer, Lookup, count
from benchmarks.shapes import TINY


def guess(known_ids: Sequence[int], shortest: int, num_drafted: int) -> list[int]:
    """The slow truth: every length at every place."""
    for length in range(LONGEST_MATCH, shortest - 1, -1):
        for start in range(len(known_ids) - length - 1, -1, -1):
            if known_ids[start : start + length] == known_ids[-length:]:
                return list(known_ids[start + length : start + length + num_drafted])
    return []


@pytest.mark.parametrize("shortest", [1, 2, 3])
def test_the_longest_match_is_taken_then_the_latest(shortest: int) -> None:
    assert guess((1, 2, 3, 9, 2, 3, 8, 1, 2, 3), shortest, 2) == [9, 2]
    generator = random.Random(0)
    for length in range(60):
        ids = [generator.randrange(5) for _ in range(length + 1)]
        lookup = Lookup(ids[: length // 2])
        lookup.extend(ids[length // 2 :])
        assert list(lookup.guess(shortest, 3)) == guess(ids, shortest, 3)


def test_an_answer_that_repeats_the_text_is_taken_over_in_long_steps() -> None:
    text = tuple(range(10, 30))
    found = count([Answer(text, text[3:14])], shortest=1, num_drafted=4)
    assert (found.num_tokens, found.num_steps, found.num_drafting) == (10, 2, 2)
    assert found.tokens_per_step == 5
    assert found.speed_up(cost=2.0) == pytest.approx(2.5)


def test_what_was_guessed_in_vain_costs_its_step() -> None:
    found = count([Answer((5, 6, 5, 7), (5, 8, 9, 4))], shortest=1, num_drafted=2)
    assert (found.num_tokens, found.num_steps, found.num_drafting) == (3, 3, 1)
    assert found.speed_up(cost=1.0) == 1.0
    assert found.speed_up(cost=2.5) == pytest.approx(3 / 4.5)


def test_steps_of_one_place_are_timed_with_and_without_guesses() -> None:
    backbone = Backbone.from_model(TINY.build_model(), TINY.build_tokenizer(), name=TINY.name)
    part = lookup.measure_step(backbone, 2, lambda line: None)
    assert {batch: set(taken) for batch, taken in part.batch_to_step_s.items()} == {1: {1, 3, 4, 5}, 8: {1, 3, 4, 5}}
    assert part.cost(8, 4) > 0
