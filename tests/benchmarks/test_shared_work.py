"""What the benchmark of shared work compares is the same work."""

from __future__ import annotations

import pytest

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.model.backbone import Backbone
from benchmarks.shapes import TINY
from benchmarks.shared_work import (
    Load,
    chat,
    compare,
    decide_one_by_one,
    decide_over_tree,
    instructions,
    labels,
    nothing_shared,
    text,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_model(TINY.build_model(), TINY.build_tokenizer(), name=TINY.name)


def make_engine(backbone: Backbone, *, prefix_caching: bool) -> Engine:
    return Engine(backbone, EngineConfig.sized_for(backbone, prefix_caching=prefix_caching, kv_cache_bytes=2**26))


@pytest.mark.parametrize(("load", "has_less_to_do"), [(chat, True), (instructions, True), (nothing_shared, False)])
def test_only_loads_that_share_text_take_fewer_tokens_with_the_cache(
    backbone: Backbone, load: Load, has_less_to_do: bool
) -> None:
    num_tokens = []
    for prefix_caching in (True, False):
        engine = make_engine(backbone, prefix_caching=prefix_caching)
        computed = 0
        run = engine.model_runner.run

        def counted(batch, chosen, run=run):
            nonlocal computed
            computed += batch.num_tokens
            return run(batch, chosen)

        engine.model_runner.run = counted
        load(engine, 0)
        num_tokens.append(computed)
    assert (num_tokens[0] < 0.7 * num_tokens[1]) == has_less_to_do
    assert has_less_to_do or num_tokens[0] == num_tokens[1]


def test_both_ways_to_decide_find_the_same_log_probabilities(backbone: Backbone) -> None:
    ids, wanted = text("x", 20), labels(30)
    found = []
    for decide in (decide_over_tree, decide_one_by_one):
        engine = make_engine(backbone, prefix_caching=False)
        decide(engine, ids, wanted)
        scores: list[tuple[int, int, float]] = []
        while engine.has_unfinished:
            for _, delta in engine.step():
                scores += ((index, token, value) for (index, token), value in (delta.scores or {}).items())
        found.append(scores)
    assert len(found[0]) < len(found[1])
    for those, others in (found, reversed(found)):
        for score in those:
            assert any(score[:2] == other[:2] and abs(score[2] - other[2]) < 1e-4 for other in others)


def test_every_contender_runs_in_every_repetition(backbone: Backbone) -> None:
    seen: list[tuple[str, int]] = []
    engine = make_engine(backbone, prefix_caching=True)
    seconds = compare({name: (engine, lambda _, n, name=name: seen.append((name, n))) for name in "ab"}, 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert sorted(seen) == [(name, n) for name in "ab" for n in range(4)]
    assert seen[0][0] != seen[2][0], "who goes first alternates"
