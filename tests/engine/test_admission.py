from __future__ import annotations

import random

import pytest

from app.engine.admission import ScoringPlan

Continuation = tuple[int, ...]


def log_likelihood(node: Continuation, token_id: int) -> float:
    """Any function of the earlier tokens and this one will do."""
    return -(1 + sum((i + 2) * (token + 1) for i, token in enumerate(node)) * 0.37 + token_id * 0.11)


def score(continuations: list[Continuation]) -> list[float]:
    """Through the plan: what an engine would find on each path."""
    plan = ScoringPlan.of(continuations)
    found = [
        {(place, t): log_likelihood(path.token_ids[:place], t) for place, ids in path.targets.items() for t in ids}
        for path in plan.paths
    ]
    return plan.sum(found)


def naive_score(continuation: Continuation) -> float:
    return sum(log_likelihood(continuation[:i], token_id) for i, token_id in enumerate(continuation))


CASES: dict[str, list[Continuation]] = {
    "one token each": [(1,), (2,), (3,)],
    "a single one": [(1, 2, 3)],
    "beginnings of each other": [(1,), (1, 2), (1, 2, 3), (1, 2, 4)],
    "nothing shared": [(1, 2), (3, 4), (5, 6)],
    "twice the same": [(1, 2), (1, 2), (1,)],
    "150 labels": [(k % 3, k % 11, k // 7, k) for k in range(150)],
}


@pytest.mark.parametrize("continuations", CASES.values(), ids=CASES)
def test_the_plan_gives_what_scoring_each_alone_gives(continuations: list[Continuation]) -> None:
    assert score(continuations) == pytest.approx([naive_score(each) for each in continuations])


def test_random_sets_give_what_scoring_each_alone_gives() -> None:
    generator = random.Random(0)
    for _ in range(300):
        continuations = [
            tuple(generator.randrange(3) for _ in range(generator.randint(1, 5)))
            for _ in range(generator.randint(1, 9))
        ]
        assert score(continuations) == pytest.approx([naive_score(each) for each in continuations])


def test_labels_of_one_token_need_one_path_with_no_token_of_its_own() -> None:
    (path,) = ScoringPlan.of([(1,), (2,), (3,)]).paths
    assert (path.token_ids, path.targets) == ((), {0: (1, 2, 3)})


def test_the_last_token_of_a_label_is_never_put_in() -> None:
    (path,) = ScoringPlan.of([(1, 2, 3)]).paths
    assert path.token_ids == (1, 2)


def test_every_place_of_the_tree_is_looked_at_once() -> None:
    paths = ScoringPlan.of(CASES["150 labels"]).paths
    places = [path.token_ids[:place] for path in paths for place in path.targets]
    assert len(places) == len(set(places))
    assert len(paths) <= 150


def test_labels_that_part_late_share_their_beginning() -> None:
    assert ScoringPlan.of([(1, 2, 3), (1, 2, 4), (1, 2, 5)]).num_sequences == 1
