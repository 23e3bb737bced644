from __future__ import annotations

import pytest

from app.engine.block_manager import BlockManager
from app.engine.prefix.prefix_cache import PrefixCache
from app.engine.sequence import Prefix, Sequence
from tests.support.segments import make_prompt, make_sequence


@pytest.fixture
def blocks() -> BlockManager:
    return BlockManager(num_blocks=40, block_size=4)


@pytest.fixture
def cache(blocks: BlockManager) -> PrefixCache:
    return PrefixCache(blocks)


def compute(blocks: BlockManager, prefix: Prefix | None) -> None:
    assert prefix is not None
    if prefix.parent is not None and not prefix.parent.is_computed:
        compute(blocks, prefix.parent)
    blocks.allocate(prefix, prefix.num_tokens)
    prefix.num_computed_tokens = prefix.num_tokens


def acquired(cache: PrefixCache, sequence: Sequence) -> Sequence:
    cache.acquire(sequence)
    return sequence


def test_equal_content_is_one_prefix_whoever_names_it(cache: PrefixCache) -> None:
    first, second = (acquired(cache, make_sequence(prompt=make_prompt(7))) for _ in range(2))
    other = acquired(cache, make_sequence(prompt=make_prompt(7, seed=1)))
    assert first.parent is second.parent
    assert first.parent is not other.parent
    assert len(cache) == 2


def test_a_sequence_begins_after_its_prefix(cache: PrefixCache) -> None:
    sequence = acquired(cache, make_sequence(10, prompt=make_prompt(7), num_shared_tokens=4))
    assert sequence.num_computed_tokens == sequence.num_parent_tokens == 11
    assert sequence.num_uncomputed_tokens == 6
    alone = acquired(cache, make_sequence(10))
    assert (alone.parent, alone.num_computed_tokens, alone.num_cached_tokens) == (None, 0, 0)


def test_cached_tokens_are_those_that_need_no_computing(cache: PrefixCache, blocks: BlockManager) -> None:
    first = acquired(cache, make_sequence(10, prompt=make_prompt(7), num_shared_tokens=4))
    assert first.num_cached_tokens == 0
    assert first.parent is not None
    compute(blocks, first.parent.parent)
    second = acquired(cache, make_sequence(10, prompt=make_prompt(7), num_shared_tokens=5))
    assert second.num_cached_tokens == 7
    compute(blocks, first.parent)
    third = acquired(cache, make_sequence(10, prompt=make_prompt(7), num_shared_tokens=4))
    assert third.num_cached_tokens == 11


def test_a_preempted_sequence_does_not_count_its_own_prefix_as_found(cache: PrefixCache, blocks: BlockManager) -> None:
    sequence = acquired(cache, make_sequence(prompt=make_prompt(7)))
    compute(blocks, sequence.parent)
    cache.release(sequence)
    sequence.num_preemptions = 1
    assert acquired(cache, sequence).num_cached_tokens == 0


def test_a_computed_prompt_stays_without_users_until_room_is_needed(cache: PrefixCache, blocks: BlockManager) -> None:
    sequence = acquired(cache, make_sequence(prompt=make_prompt(7)))
    compute(blocks, sequence.parent)
    cache.release(sequence)
    assert sequence.parent is None
    assert (len(cache), blocks.num_blocks - blocks.num_free_blocks) == (1, 2)
    assert cache.evict()
    assert (len(cache), blocks.num_blocks - blocks.num_free_blocks) == (0, 0)
    assert not cache.evict()


def test_a_prompt_that_was_never_finished_goes_with_its_last_user(cache: PrefixCache, blocks: BlockManager) -> None:
    first, second = (acquired(cache, make_sequence(prompt=make_prompt(7))) for _ in range(2))
    assert first.parent is not None
    blocks.allocate(first.parent, 4)
    first.parent.num_computed_tokens = 4
    cache.release(first)
    assert (len(cache), blocks.num_blocks - blocks.num_free_blocks) == (1, 1)
    cache.release(second)
    assert (len(cache), blocks.num_blocks - blocks.num_free_blocks) == (0, 0)


def test_a_shared_text_goes_with_its_last_sibling_and_lets_go_of_the_prompt(
    cache: PrefixCache, blocks: BlockManager
) -> None:
    siblings = [acquired(cache, make_sequence(prompt=make_prompt(7), num_shared_tokens=5)) for _ in range(3)]
    compute(blocks, siblings[0].parent)
    prompt = siblings[0].parent.parent  # type: ignore[union-attr]
    assert prompt is not None
    assert prompt.num_users == 1, "the text holds the prompt, once"
    for sibling in siblings:
        cache.release(sibling)
    assert cache.prefixes == [prompt]
    assert prompt.num_users == 0


def test_the_least_recently_used_prefix_is_dropped_first(cache: PrefixCache, blocks: BlockManager) -> None:
    for seed in (0, 1, 2, 0):
        sequence = acquired(cache, make_sequence(prompt=make_prompt(7, seed)))
        if not sequence.parent.is_computed:  # type: ignore[union-attr]
            compute(blocks, sequence.parent)
        cache.release(sequence)
    kept = []
    while cache.evict():
        kept.append([prefix.key for prefix in cache.prefixes])
    keys = [make_prompt(7, seed).digest for seed in (1, 2, 0)]
    assert kept == [keys[1:], keys[2:], []]


def test_a_prefix_in_use_is_never_dropped(cache: PrefixCache, blocks: BlockManager) -> None:
    sequence = acquired(cache, make_sequence(prompt=make_prompt(7), num_shared_tokens=3))
    compute(blocks, sequence.parent)
    assert not cache.evict()
    blocks.audit(list(cache.prefixes))


def test_a_forgotten_prefix_serves_its_users_and_none_after(cache: PrefixCache, blocks: BlockManager) -> None:
    old = acquired(cache, make_sequence(prompt=make_prompt(7)))
    compute(blocks, old.parent)
    assert old.parent is not None
    forgotten = old.parent
    cache.forget(forgotten)
    new = acquired(cache, make_sequence(prompt=make_prompt(7)))
    assert new.parent is not forgotten
    compute(blocks, new.parent)
    blocks.audit(list(cache.prefixes))
    cache.release(old)
    assert cache.prefixes == [new.parent]
    blocks.audit(list(cache.prefixes))


def test_forgetting_an_unused_or_unknown_prefix_frees_it_or_does_nothing(
    cache: PrefixCache, blocks: BlockManager
) -> None:
    sequence = acquired(cache, make_sequence(prompt=make_prompt(7)))
    prefix = sequence.parent
    assert prefix is not None
    compute(blocks, prefix)
    cache.release(sequence)
    cache.forget(prefix)
    cache.forget(prefix)
    assert (len(cache), blocks.num_blocks - blocks.num_free_blocks) == (0, 0)


def test_a_text_after_a_forgotten_prompt_can_still_be_shared(cache: PrefixCache, blocks: BlockManager) -> None:
    old = acquired(cache, make_sequence(prompt=make_prompt(7), num_shared_tokens=3))
    compute(blocks, old.parent)
    cache.forget(old.parent.parent)  # type: ignore[union-attr, arg-type]
    new = acquired(cache, make_sequence(prompt=make_prompt(7), num_shared_tokens=3))
    for sequence in (old, new):
        cache.release(sequence)
        blocks.audit(list(cache.prefixes))
    assert len(cache) == 0


def test_keys_and_values_that_are_ready_are_loaded_not_computed(cache: PrefixCache) -> None:
    for kind in ("kv", "embeddings"):
        sequence = acquired(cache, make_sequence(prompt=make_prompt(3, kind=kind)))
        assert sequence.parent is not None
        assert sequence.parent.is_loadable == (kind == "kv")
