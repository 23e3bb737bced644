from __future__ import annotations

import random

import pytest

from app.engine.admission import EngineRequest
from app.engine.block_manager import BlockManager
from app.engine.scheduler import MAX_PROMPT_LOGITS, Scheduler
from app.engine.sequence import Sequence
from tests.support.segments import make_prompt, make_sequence, step


def make_scheduler(
    *,
    num_blocks: int = 200,
    block_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 16,
    is_text_kept: bool = False,
) -> Scheduler:
    """Sequences here have one text, so it is computed anew for each unless a test asks otherwise."""
    blocks = BlockManager(num_blocks=num_blocks, block_size=block_size)
    return Scheduler(blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, is_text_kept=is_text_kept)


def run(scheduler: Scheduler, *sequences: Sequence, max_steps: int = 5000) -> int:
    """Steps until all are finished."""
    for sequence in sequences:
        scheduler.add(sequence)
    for num_steps in range(max_steps):
        if not scheduler.has_unfinished:
            return num_steps
        step(scheduler)
    raise AssertionError("no end")


def test_a_budget_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        make_scheduler(max_num_seqs=8, budget=7)


def test_a_long_text_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = make_scheduler(budget=16)
    sequence = make_sequence(40, max_tokens=2)
    scheduler.add(sequence)
    assert [step(scheduler) for _ in range(4)] == [16, 16, 8, 1]
    assert not scheduler.has_unfinished


def test_no_step_computes_more_than_the_budget() -> None:
    generator = random.Random(0)
    scheduler = make_scheduler(budget=11, num_blocks=60)
    for _ in range(400):
        if generator.random() < 0.5:
            prompt = make_prompt(generator.randint(1, 30), generator.randrange(4)) if generator.random() < 0.7 else None
            length = generator.randint(1, 30)
            scheduler.add(make_sequence(length, prompt=prompt, num_shared_tokens=generator.randrange(length)))
        assert step(scheduler) <= 11
        assert len(scheduler.running) <= 8


def test_those_that_generate_go_on_while_a_long_text_comes_in() -> None:
    scheduler = make_scheduler(budget=10)
    writers = [make_sequence(1, max_tokens=50) for _ in range(4)]
    for writer in writers:
        scheduler.add(writer)
    step(scheduler)
    scheduler.add(make_sequence(60))
    for _ in range(5):
        before = [writer.num_generated_tokens for writer in writers]
        assert step(scheduler) == 10
        assert [writer.num_generated_tokens for writer in writers] == [count + 1 for count in before]


def test_a_long_prefix_before_one_token_makes_no_one_wait() -> None:
    scheduler = make_scheduler(budget=8, max_num_seqs=8)
    # the elder has one token of its own but a long prefix to compute first; the writer came later
    elder = make_sequence(50, num_shared_tokens=49)
    scheduler.add(elder)
    step(scheduler)
    writer = make_sequence(1, max_tokens=50)
    scheduler.running.append(writer)  # as if admitted with it
    counts = []
    for _ in range(4):
        step(scheduler)
        counts.append(writer.num_generated_tokens)
    assert counts == [1, 2, 3, 4]


def test_a_prompt_is_computed_once_for_all_that_come_together() -> None:
    scheduler = make_scheduler(budget=64)
    for _ in range(5):
        scheduler.add(make_sequence(3, prompt=make_prompt(10), max_tokens=1))
    assert step(scheduler) == 10 + 5 * 3
    scheduler.add(make_sequence(3, prompt=make_prompt(10), max_tokens=1))
    assert step(scheduler) == 3


def test_the_budget_may_end_within_a_prefix() -> None:
    scheduler = make_scheduler(budget=8)
    sequence = make_sequence(3, prompt=make_prompt(20), max_tokens=1)
    scheduler.add(sequence)
    assert [step(scheduler) for _ in range(3)] == [8, 8, 7]
    assert not scheduler.has_unfinished


def test_ready_keys_and_values_cost_no_budget() -> None:
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_sequence(3, prompt=make_prompt(20, kind="kv"), max_tokens=1))
    batch = scheduler.schedule()
    assert (batch.num_tokens, len(batch.loads), len(batch.copies)) == (3, 1, 0)
    scheduler.advance(batch)
    scheduler.keep(batch)
    assert batch.loads[0].is_computed


def test_fresh_blocks_and_tail_copies_belong_to_what_is_planned() -> None:
    scheduler = make_scheduler(budget=64)
    sequence = make_sequence(3, prompt=make_prompt(10))
    scheduler.add(sequence)
    batch = scheduler.schedule()
    (copy,) = batch.copies
    assert sequence.parent is not None
    assert (copy.source, copy.target) == (sequence.parent.block_table[2], sequence.block_table[2])
    assert set(batch.fresh_blocks) == {*sequence.parent.block_table, *sequence.block_table[2:]}


@pytest.mark.parametrize(("is_text_kept", "num_hits"), [(False, 10), (True, 12)])
def test_prefix_hits_are_tokens_found_computed(is_text_kept: bool, num_hits: int) -> None:
    scheduler = make_scheduler(budget=64, is_text_kept=is_text_kept)
    counts = []
    for _ in range(2):
        scheduler.add(make_sequence(5, prompt=make_prompt(10), num_shared_tokens=3, max_tokens=1))
        batch = scheduler.schedule()
        counts.append((batch.num_prefix_queries, batch.num_prefix_hits))
        scheduler.advance(batch)
        scheduler.keep(batch)
        scheduler.finish(scheduler.running[0])
    assert counts == [(15, 0), (15, num_hits)]


def test_text_tokens_of_a_step_leave_out_prompts_and_what_was_generated() -> None:
    scheduler = make_scheduler(budget=64)
    scheduler.add(make_sequence(5, prompt=make_prompt(10), num_shared_tokens=3, max_tokens=9))
    scheduler.add(make_sequence(4, max_tokens=9))
    batch = scheduler.schedule()
    assert (batch.num_tokens, batch.num_text_tokens) == (19, 9)
    scheduler.advance(batch)
    scheduler.keep(batch)
    for sequence in scheduler.running:
        sequence.token_ids.append(1)
    batch = scheduler.schedule()
    assert (batch.num_tokens, batch.num_text_tokens) == (2, 0)


def test_rows_of_logits_are_bounded_for_the_whole_batch() -> None:
    scheduler = make_scheduler(budget=4096, num_blocks=2000)
    sequences = [make_sequence(200, prompt_logprobs=1, max_tokens=1) for _ in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(20):
        batch = scheduler.schedule()
        wanted = sum(item.num_tokens for item in batch.items)
        assert 0 < wanted <= MAX_PROMPT_LOGITS + len(sequences)
        scheduler.advance(batch)
        scheduler.keep(batch)
        for sequence in list(scheduler.running):
            sequence.num_reported_logprobs = min(sequence.num_computed_tokens, sequence.num_prompt_tokens - 1)
            if sequence.is_computed:
                scheduler.finish(sequence)
        if not scheduler.has_unfinished:
            return
    raise AssertionError("no end")


def test_the_youngest_is_preempted_and_comes_back() -> None:
    scheduler = make_scheduler(num_blocks=1 + 8, budget=32)
    old, young = make_sequence(12, max_tokens=12), make_sequence(12, max_tokens=12)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert (old in scheduler.running, young in scheduler.running) == (True, False)
    assert young.block_table == []
    assert young.num_generated_tokens > 0
    assert scheduler.waiting.peek() is young
    run(scheduler)
    assert (old.num_generated_tokens, young.num_generated_tokens) == (12, 12)


def test_unused_prefixes_are_dropped_before_any_sequence_is_preempted() -> None:
    scheduler = make_scheduler(num_blocks=1 + 10, budget=32)
    run(scheduler, make_sequence(2, prompt=make_prompt(12), max_tokens=1))
    assert len(scheduler.prefix_cache) == 1
    run(scheduler, make_sequence(12, max_tokens=8), make_sequence(12, max_tokens=8))
    assert scheduler.num_preemptions == 0
    assert len(scheduler.prefix_cache) == 0


def test_preempting_the_one_whose_prefix_is_being_computed_leaves_no_half_prefix() -> None:
    scheduler = make_scheduler(num_blocks=1 + 12, budget=8, max_num_seqs=8)
    old = make_sequence(8, max_tokens=30)
    scheduler.add(old)
    for _ in range(12):
        step(scheduler)
    young = make_sequence(3, prompt=make_prompt(20), max_tokens=2)
    scheduler.add(young)
    step(scheduler)
    assert len(scheduler.prefix_cache) == 1
    scheduler.preempt(young)
    scheduler.audit()
    assert len(scheduler.prefix_cache) == 0
    run(scheduler)
    assert (old.num_generated_tokens, young.num_generated_tokens) == (30, 2)


@pytest.mark.parametrize("state", ["waiting", "in its prefix", "generating"])
def test_a_sequence_can_be_taken_out_at_any_time(state: str) -> None:
    scheduler = make_scheduler(budget=8)
    sequence = make_sequence(6, prompt=make_prompt(11), num_shared_tokens=5, max_tokens=9)
    scheduler.add(sequence)
    for _ in range({"waiting": 0, "in its prefix": 1, "generating": 4}[state]):
        step(scheduler)
    scheduler.finish(sequence)
    scheduler.audit()
    assert not scheduler.has_unfinished
    while scheduler.prefix_cache.evict():
        pass
    assert scheduler.block_manager.num_blocks - scheduler.block_manager.num_free_blocks == 0


@pytest.mark.parametrize("seed", range(40))
def test_everything_ends_in_the_smallest_pool_that_was_accepted(seed: int) -> None:
    generator = random.Random(seed)
    sequences = []
    for _ in range(12):
        length = generator.randint(1, 14)
        prompt = make_prompt(generator.randint(1, 14), generator.randrange(3), generator.choice(["kv", "embeddings"]))
        sequences.append(
            make_sequence(
                length,
                prompt=generator.choice([None, prompt]),
                num_shared_tokens=generator.randrange(length),
                max_tokens=generator.randint(1, 12),
                flow=generator.choice("ab"),
                prompt_logprobs=generator.choice([None, 1]),
            )
        )
    block_size = generator.choice([1, 2, 4, 8])
    max_num_seqs = generator.randint(1, 5)
    needed = max(
        EngineRequest(
            token_ids=each.token_ids, prompt=each.prompt, params=each.params, num_shared_tokens=each.num_shared_tokens
        ).num_blocks(block_size)
        for each in sequences
    )
    scheduler = make_scheduler(
        num_blocks=1 + needed,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        budget=generator.randint(max_num_seqs, 20),
    )
    run(scheduler, *sequences)
    assert all(sequence.num_generated_tokens == sequence.params.max_tokens for sequence in sequences)


def test_a_flood_of_one_flow_leaves_the_other_its_share_of_tokens() -> None:
    scheduler = make_scheduler(budget=16, max_num_seqs=2)
    for _ in range(100):
        scheduler.add(make_sequence(8, max_tokens=8, flow="flood"))
    step(scheduler)
    for _ in range(10):
        scheduler.add(make_sequence(8, max_tokens=8, flow="calm"))
    finished: list[Sequence] = []
    while sum(sequence.flow == "calm" for sequence in finished) < 10:
        step(scheduler, finished)
    assert len(finished) <= 24


def test_text_is_computed_once_for_those_that_come_after() -> None:
    scheduler = make_scheduler(budget=64, is_text_kept=True)
    sequence = make_sequence(17, prompt=make_prompt(10), max_tokens=6)
    scheduler.add(sequence)
    assert step(scheduler) == 27
    scheduler.add(make_sequence(17, prompt=make_prompt(10), max_tokens=1))
    # 24 of the 27 tokens are in full blocks of the first one, which still runs
    assert step(scheduler) == 1 + 3
    while scheduler.has_unfinished:
        step(scheduler)
    scheduler.add(make_sequence(17, prompt=make_prompt(10, seed=1), max_tokens=1))
    assert step(scheduler) == 27, "after another prompt it is another text"
    turn = make_sequence(17, prompt=make_prompt(10), max_tokens=1)
    turn.token_ids = [*sequence.token_ids, 50, 51, 52]
    scheduler.add(turn)
    # what was generated, the last token aside, is text that was computed: 32 of 17 + 10 + 6 - 1
    assert step(scheduler) == 17 + 10 + 6 + 3 - 32


def test_text_of_another_salt_is_another_text() -> None:
    scheduler = make_scheduler(budget=64, is_text_kept=True)
    for salt, num_computed in (("a", 17), ("b", 17), ("a", 1), ("", 17)):
        sequence = make_sequence(17, max_tokens=1)
        sequence.cache_salt = salt
        scheduler.add(sequence)
        assert step(scheduler) == num_computed


@pytest.mark.parametrize(("num_shared_tokens", "num_reused"), [(0, 8), (9, 9)])
def test_wanted_logits_are_computed_though_the_text_is_known(num_shared_tokens: int, num_reused: int) -> None:
    scheduler = make_scheduler(budget=64, is_text_kept=True)
    scheduler.add(make_sequence(17, max_tokens=1))
    step(scheduler)
    scheduler.add(make_sequence(17, max_tokens=1, prompt_logprobs=1))
    assert step(scheduler) == 17
    scored = make_sequence(17, max_tokens=0, num_shared_tokens=num_shared_tokens)
    scored.score_targets = {9: (1,), 16: (2,)}
    scheduler.add(scored)
    scheduler.schedule()
    assert scored.num_computed_tokens == num_reused
