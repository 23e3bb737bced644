from __future__ import annotations

import random

import pytest

from app.engine.block_manager import NULL_BLOCK, BlockManager, TailCopy
from app.engine.sequence import Prefix, Segment


def make_prefix(num_tokens: int, parent: Prefix | None = None) -> Prefix:
    return Prefix(key=str(num_tokens), content=tuple(range(num_tokens)), num_own_tokens=num_tokens, parent=parent)


def test_a_cache_without_a_block_to_hand_out_is_refused() -> None:
    for num_blocks, block_size in ((1, 4), (0, 4), (5, 0)):
        with pytest.raises(ValueError, match="at least"):
            BlockManager(num_blocks=num_blocks, block_size=block_size)


def test_blocks_are_counted_without_the_null_block_which_is_never_given() -> None:
    blocks = BlockManager(num_blocks=6, block_size=4)
    segment = make_prefix(20)
    blocks.allocate(segment, 20)
    assert (blocks.num_blocks, blocks.num_free_blocks) == (5, 0)
    assert NULL_BLOCK not in segment.block_table
    blocks.audit([segment])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_tokens_take_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    segment = make_prefix(9)
    assert blocks.num_blocks_for(num_tokens) == blocks.num_missing_blocks(segment, num_tokens) == num_blocks
    blocks.allocate(segment, num_tokens)
    assert len(segment.block_table) == num_blocks
    assert blocks.num_missing_blocks(segment, num_tokens) == 0


def test_growing_keeps_what_is_there() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    segment = make_prefix(20)
    blocks.allocate(segment, 5)
    first = list(segment.block_table)
    blocks.allocate(segment, 13)
    assert segment.block_table[:2] == first
    assert len(segment.block_table) == 4


def test_full_blocks_are_shared_and_the_partial_one_is_copied() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    prefix = make_prefix(10)
    blocks.allocate(prefix, 10)
    child = make_prefix(4, parent=prefix)
    assert blocks.num_missing_blocks(child, 14) == 2
    copy = blocks.allocate(child, 14)
    assert child.block_table[:2] == prefix.block_table[:2]
    assert copy == TailCopy(prefix.block_table[2], child.block_table[2], num_rows=2, depth=0)
    assert prefix.block_table[2] not in child.block_table
    assert blocks.num_blocks - blocks.num_free_blocks == 5
    assert blocks.allocate(child, 16) is None, "a tail is handed on once"
    blocks.audit([prefix, child])


def test_a_prefix_that_ends_with_its_block_is_shared_without_a_copy() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    prefix = make_prefix(8)
    blocks.allocate(prefix, 8)
    child = make_prefix(4, parent=prefix)
    assert blocks.allocate(child, 9) is None
    assert child.block_table[:2] == prefix.block_table
    assert len(child.block_table) == 3


def test_a_tail_after_a_tail_is_copied_later() -> None:
    blocks = BlockManager(num_blocks=9, block_size=16)
    prompt = make_prefix(3)
    text = make_prefix(4, parent=prompt)
    child = make_prefix(4, parent=text)
    blocks.allocate(prompt, 3)
    first, second = blocks.allocate(text, 7), blocks.allocate(child, 9)
    assert first is not None
    assert second is not None
    assert (first.depth, second.depth) == (0, 1)
    assert (first.num_rows, second.num_rows) == (3, 7)


def test_giving_back_leaves_the_segment_empty_and_the_shared_blocks_to_the_others() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    prefix = make_prefix(8)
    blocks.allocate(prefix, 8)
    children = [make_prefix(4, parent=prefix) for _ in range(2)]
    for child in children:
        blocks.allocate(child, 9)
        child.num_computed_tokens = 9
    blocks.free(children[0])
    assert (children[0].block_table, children[0].num_computed_tokens) == ([], 0)
    assert blocks.num_blocks - blocks.num_free_blocks == 3
    blocks.free(prefix)
    assert blocks.num_blocks - blocks.num_free_blocks == 3
    blocks.free(children[1])
    assert blocks.num_free_blocks == blocks.num_blocks
    blocks.audit([])


def test_fresh_blocks_are_told_once_and_shared_ones_never() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    prefix = make_prefix(10)
    blocks.allocate(prefix, 10)
    assert sorted(blocks.take_fresh()) == sorted(prefix.block_table)
    assert blocks.take_fresh() == []
    child = make_prefix(4, parent=prefix)
    blocks.allocate(child, 11)
    assert blocks.take_fresh() == child.block_table[2:]


def test_the_audit_sees_a_lost_block_and_one_held_twice() -> None:
    blocks = BlockManager(num_blocks=9, block_size=4)
    segment = make_prefix(8)
    blocks.allocate(segment, 8)
    with pytest.raises(AssertionError):
        blocks.audit([])
    with pytest.raises(AssertionError):
        blocks.audit([segment, segment])


def test_random_allocation_and_giving_back_keep_the_books() -> None:
    generator = random.Random(0)
    blocks = BlockManager(num_blocks=40, block_size=4)
    alive: list[Segment] = []
    for _ in range(3000):
        if alive and generator.random() < 0.4:
            leaf = generator.choice([s for s in alive if not any(other.parent is s for other in alive)])
            blocks.free(leaf)
            alive.remove(leaf)
        else:
            prefixes = [s for s in alive if isinstance(s, Prefix)]
            parent = generator.choice([None, *prefixes])
            segment = make_prefix(generator.randint(1, 15), parent)
            if blocks.num_missing_blocks(segment, segment.num_tokens) <= blocks.num_free_blocks:
                before = blocks.num_free_blocks
                missing = blocks.num_missing_blocks(segment, segment.num_tokens)
                blocks.allocate(segment, segment.num_tokens)
                assert blocks.num_free_blocks == before - missing
                alive.append(segment)
        blocks.audit(alive)


def test_a_remembered_block_can_be_had_again_until_it_is_handed_out_anew() -> None:
    blocks = BlockManager(num_blocks=5, block_size=4)
    first, second, third = (make_prefix(8) for _ in range(3))
    blocks.allocate(first, 8)
    for block, key in zip(first.block_table, (b"a", b"b"), strict=True):
        blocks.remember(block, key)
    held = list(first.block_table)
    blocks.free(first)
    assert blocks.num_free_blocks == 4, "what is remembered is free all the same"
    blocks.reuse(second, [b"a", b"b", b"c"])
    assert (second.block_table, second.num_computed_tokens) == (held, 8)
    blocks.reuse(third, [b"a"])
    blocks.audit([second, third])
    blocks.free(second)
    blocks.free(third)
    blocks.allocate(first, 12)
    assert held[1] in first.block_table, "of a chain the end goes first"
    assert held[0] not in first.block_table, "blocks without a key go before those with one"
    blocks.reuse(second, [b"a", b"b"])
    assert second.block_table == held[:1]
    blocks.audit([first, second])


def test_what_was_remembered_first_and_not_used_since_is_lost_first() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    for key in (b"a", b"b", b"c"):
        segment = make_prefix(4)
        blocks.allocate(segment, 4)
        blocks.remember(segment.block_table[0], key)
        blocks.free(segment)
    used = make_prefix(4)
    blocks.reuse(used, [b"a"])
    blocks.free(used)
    blocks.allocate(make_prefix(4), 4)
    found = []
    for key in (b"a", b"b", b"c"):
        segment = make_prefix(4)
        blocks.reuse(segment, [key])
        found.append(bool(segment.block_table))
    assert found == [True, False, True]


def test_forgotten_blocks_are_not_found_and_stay_with_their_owner() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    owner, later = make_prefix(8), make_prefix(8)
    blocks.allocate(owner, 8)
    for block, key in zip(owner.block_table, (b"a", b"b"), strict=True):
        blocks.remember(block, key)
    blocks.forget(owner.block_table[:1])
    blocks.reuse(later, [b"a", b"b"])
    assert later.block_table == []
    blocks.reuse(later, [b"b"])
    assert later.block_table == owner.block_table[1:]
    blocks.forget_all()
    blocks.audit([owner, later])
