"""What prompt lookup would gain is counted as it would be decoded, and its steps compute what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.model.backbone import Backbone
from app.settings import DEMO_BACKBONE, demo_tasks
from benchmarks import lookup
from benchmarks.lookup import Answer, count
from benchmarks.shapes import TINY


def test_an_answer_that_repeats_the_text_is_taken_over_in_long_steps() -> None:
    text = tuple(range(10, 30))
    found = count([Answer(text, text[3:14])], num_drafted=4)
    assert (found.num_tokens, found.num_steps, found.num_drafting) == (10, 2, 2)
    assert found.tokens_per_step == 5
    assert found.speed_up(cost=2.0) == pytest.approx(2.5)


def test_what_was_guessed_in_vain_costs_its_step() -> None:
    found = count([Answer((5, 6, 5, 7), (5, 8, 9, 4))], num_drafted=2)
    assert (found.num_tokens, found.num_steps, found.num_drafting) == (3, 3, 1)
    assert found.speed_up(cost=1.0) == 1.0
    assert found.speed_up(cost=2.5) == pytest.approx(3 / 4.5)


def test_steps_of_one_place_are_timed_with_and_without_guesses() -> None:
    backbone = Backbone.from_model(TINY.build_model(), TINY.build_tokenizer(), name=TINY.name)
    part = lookup.measure_step(backbone, 2, lambda line: None)
    assert {batch: set(taken) for batch, taken in part.batch_to_step_s.items()} == {1: {1, 3, 4, 5}, 8: {1, 3, 4, 5}}
    assert part.cost(8, 4) > 0


def test_answers_are_the_same_with_guesses_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "wikinews_headline"
    folder.mkdir()
    rows = [{"input": f"The council of Town {k} met on Monday to discuss bridges.", "target": "-"} for k in range(3)]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = lookup.measure_answers(Backbone.load(DEMO_BACKBONE), tmp_path, demo_tasks(), 3, lambda line: None)
    for at_once in lookup.AT_ONCE:
        speed = part.at_once_to_speed[at_once]
        assert speed.num_equal == 3
        assert speed.num_tokens > 3
        assert speed.plain_s > 0 < speed.guessing_s
