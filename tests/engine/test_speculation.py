"""Guesses change how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from app.engine.engine import Engine
from app.engine.output.output import Delta
from app.engine.speculation import LONGEST_MATCH, PromptLookup, count_right
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics
from tests.engine.test_engine import greedy_params, make_engine, prompt_of, read, text_of
from tests.support import naive


def guess_slowly(token_ids: Sequence[int], num_tokens: int) -> list[int]:
    for length in range(min(LONGEST_MATCH, len(token_ids)), 0, -1):
        for end in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[end - length : end] == token_ids[-length:]:
                return list(token_ids[end : end + num_tokens])
    return []


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([], []),
        ([1], []),
        ([1, 2, 3], []),
        ([1, 1], [1]),
        ([5, 6, 7, 8, 5], [6, 7, 8]),
        ([1, 2, 9, 3, 2, 8, 1, 2], [9, 3, 2]),  # two ids are a better match than one
        ([1, 2, 9, 1, 2, 8, 1, 2], [8, 1, 2]),  # the latest of two
    ],
)
def test_what_followed_the_longest_match_is_proposed(ids: list[int], wanted: list[int]) -> None:
    assert PromptLookup().propose(ids, 3) == wanted == guess_slowly(ids, 3)


@pytest.mark.parametrize("seed", range(20))
def test_an_index_that_grows_finds_what_a_search_finds(seed: int) -> None:
    generator, lookup = random.Random(seed), PromptLookup()
    ids: list[int] = []
    for _ in range(60):
        ids += generator.choices(range(4), k=generator.choice([0, 1, 1, 3]))
        assert lookup.propose(ids, 5) == guess_slowly(ids, 5)


def test_guesses_are_right_up_to_the_first_that_is_not() -> None:
    assert [count_right([1, 2, 3], chosen) for chosen in ([], [1], [1, 2, 4], [9, 2, 3], [1, 2, 3])] == [0, 1, 2, 0, 3]


def answers(engine: Engine, prompts: Sequence[TaskPrompt | None], params: SamplingParams) -> list[list[object]]:
    ids = [engine.add(text_of(k, 12), prompt=prompt, params=params) for k, prompt in enumerate(prompts)]
    found = naive.run(engine)
    engine.scheduler.audit()
    return [list(map(_content, found[each])) for each in ids]


def _content(delta: Delta) -> object:
    # a step of other rows may round otherwise where torch computes it
    logprobs = [pytest.approx(each.logprob, abs=1e-4) for each in delta.logprobs or ()]
    return delta.token_ids, delta.text, logprobs, delta.finish_reason, delta.stop_reason


PARAMS = {
    "greedy": greedy_params(48, logprobs=3),
    "drawn": SamplingParams(temperature=0.3, seed=5, max_tokens=48, ignore_eos=True),
    "penalties": greedy_params(24, repetition_penalty=1.2),
    "biased": greedy_params(24, logit_bias={70: 5.0}),
    "ends": SamplingParams(temperature=0, max_tokens=48),
    "all logits": greedy_params(24, prompt_logprobs=1),
    "one token": greedy_params(1),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("num_sequences", [1, 2])
def test_every_answer_is_the_one_without_guesses(params: SamplingParams, num_sequences: int) -> None:
    prompts = [prompt_of(10), prompt_of(7, kind="kv")][:num_sequences]
    plain, guessing = Metrics(), Metrics()
    wanted = answers(make_engine(metrics=plain), prompts, params)
    assert answers(make_engine(metrics=guessing, prompt_lookup=4), prompts, params) == wanted
    num_guessed, num_right = (read(guessing, f"spec_decode_num_{kind}_tokens_total") for kind in ("draft", "accepted"))
    if params.max_tokens == 1 or params.has_penalties:
        assert num_guessed == 0
    elif params.temperature == 0 and params.ignore_eos:
        assert num_guessed > num_right > 0
    assert read(plain, "spec_decode_num_draft_tokens_total") == 0


def test_right_guesses_save_steps() -> None:
    metrics = Metrics()
    plain, guessing = make_engine(), make_engine(metrics=metrics, prompt_lookup=4)
    for engine in (plain, guessing):
        answers(engine, [prompt_of(10)], greedy_params(64))
    num_right = read(metrics, "spec_decode_num_accepted_tokens_total")
    assert guessing.stats.num_steps == plain.stats.num_steps - num_right < plain.stats.num_steps - 5


def test_a_stop_within_right_guesses_ends_the_answer_there() -> None:
    (whole,) = answers(make_engine(), [prompt_of(10)], greedy_params(48))
    ids = [token_id for token_ids, *_ in whole for token_id in token_ids]
    last = ids[-1]
    for params in (greedy_params(48, stop_token_ids=(last,)), greedy_params(ids.index(last) + 1)):
        assert answers(make_engine(prompt_lookup=4), [prompt_of(10)], params) == answers(
            make_engine(), [prompt_of(10)], params
        )


def test_many_sequences_are_not_guessed_for() -> None:
    metrics = Metrics()
    answers(make_engine(metrics=metrics, prompt_lookup=4), [prompt_of(10)] * 4, greedy_params(30))
    early = read(metrics, "spec_decode_num_draft_tokens_total")
    assert early == 0, "four sequences of equal length leave no step to fewer"


def test_computed_text_is_found_again_as_without_guesses() -> None:
    """Blocks that were filled by right guesses hold a conversation's next turn too; those of wrong ones do not."""
    found = []
    for engine in (make_engine(), make_engine(prompt_lookup=4)):
        first = engine.add(text_of(0, 12), prompt=prompt_of(10), params=greedy_params(40))
        ids = [*text_of(0, 12), *naive.tokens(naive.run(engine)[first])]
        for length in range(14, len(ids)):
            sequence_id = engine.add([*ids[:length], 77], prompt=prompt_of(10), params=greedy_params(2))
            found.append((length, naive.run(engine)[sequence_id][-1].num_cached_tokens))
    half = len(found) // 2
    assert found[:half] == found[half:]
    assert found[half - 1][1] > 12


def test_blocks_that_are_short_are_not_taken_for_guesses() -> None:
    metrics = Metrics()
    engine = make_engine(metrics=metrics, prompt_lookup=4, num_blocks=14)
    plain = make_engine(num_blocks=14)
    prompts = [None, None]
    assert answers(engine, prompts, greedy_params(12)) == answers(plain, prompts, greedy_params(12))
    assert engine.stats.num_preemptions == plain.stats.num_preemptions
