"""A population is a product, and its worse half leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.errors import InvalidInput
from app.tuning.config import Init, TuneConfig
from app.tuning.search import Search, keep_better_half

SEARCH = Search(
    {"init": (Init.VOCAB, Init.TEXT), "learning_rate": (0.1, 0.2, 0.3), "num_virtual_tokens": (5,), "seed": (0, 1)}
)


def test_members_are_the_product_and_share_the_rest() -> None:
    config = TuneConfig(init=Init.TEXT, init_text="abc", weight_decay=0.5)
    members = SEARCH.members(config)
    assert len(set(members)) == SEARCH.num_members == 12
    assert {member.weight_decay for member in members} == {0.5}
    assert {(member.init, member.init_text) for member in members} == {(Init.VOCAB, ""), (Init.TEXT, "abc")}


def test_a_single_member_is_the_configuration() -> None:
    config = TuneConfig(seed=7, learning_rate=0.5)
    assert Search().members(config) == (config,)


def test_the_default_tries_two_lengths_or_two_seeds_where_one_length_is_asked_for() -> None:
    config = TuneConfig(seed=3)
    chosen = Search.default(config, has_labels=True)
    assert (chosen.num_members, chosen.values["num_virtual_tokens"], chosen.values["seed"]) == (12, (20, 50), (3,))
    assert Search.default(config, has_labels=False).num_members == 6
    fixed = Search.default(config, has_labels=True, num_virtual_tokens=(20,))
    assert (fixed.num_members, fixed.values["num_virtual_tokens"], fixed.values["seed"]) == (12, (20,), (3, 4))
    asked = Search.default(config, has_labels=True, num_virtual_tokens=(5, 10, 50), seed=(0,), learning_rate=(0.1,))
    assert asked.num_members == 6


@pytest.mark.parametrize("length", [2, 50])
def test_the_default_keeps_a_length_that_the_configuration_says(length: int) -> None:
    chosen = Search.default(TuneConfig(num_virtual_tokens=length), has_labels=True)
    assert (chosen.values["num_virtual_tokens"], chosen.values["seed"]) == ((length,), (0, 1))


def test_the_record_names_every_value_as_saved_runs_have_it() -> None:
    config = TuneConfig(learning_rate=0.5)
    assert list(SEARCH.record(config)) == [
        "kinds", "inits", "learning_rates", "nums_virtual_tokens", "seeds", "num_cuts", "num_kept",
    ]  # fmt: skip
    assert Search({"seed": (1, 2)}).record(config)["learning_rates"] == (0.5,)


def test_cuts_fall_at_a_sixth_a_third_and_two_thirds() -> None:
    assert [step for step in range(1, 601) if SEARCH.is_cut_at(step, 600)] == [100, 200, 400]
    assert [step for step in range(1, 601) if SEARCH.is_settled_at(step, 600)] == [*range(400, 601)]
    assert all(search.is_settled_at(0, 600) for search in (replace(SEARCH, num_cuts=0), Search()))
    assert not any(SEARCH.is_cut_at(step, 1) for step in range(3))
    assert not any(replace(SEARCH, num_cuts=0).is_cut_at(step, 800) for step in range(801))


def test_the_better_half_stays_in_its_order() -> None:
    assert keep_better_half([(0.1,), (0.5,), (0.4,), (0.5,), (0.0,)]) == [1, 2, 3]
    assert keep_better_half([(0.1, 2.0), (0.1, 3.0)]) == [1]


@pytest.mark.parametrize(
    "change", [*({"values": {"seed": seeds}} for seeds in ((), (1, 1), tuple(range(65)))), {"num_cuts": 11}]
)
def test_no_possible_population_is_refused_by_field(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(SEARCH, **change)  # type: ignore[arg-type]
    assert caught.value.param in {"seed", "num_cuts"}
