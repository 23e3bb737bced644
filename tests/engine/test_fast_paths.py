"""Decode graphs and asynchronous scheduling give every sequence what the plain, synchronous engine gives it."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.output import Delta, PathScores
from app.engine.sequence import FinishReason
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from tests.support import naive
from tests.support.models import tiny_backbone

BACKBONE = tiny_backbone("llama")
PLAIN = EngineConfig(
    max_model_len=128,
    max_num_seqs=6,
    max_num_batched_tokens=24,
    block_size=4,
    num_blocks=60,
    max_waiting_requests=100,
    max_waiting_tokens=10_000,
)
WAYS = {
    "decode graphs": {"decode_graphs": True},
    "asynchronous": {"async_scheduling": True},
    "both": {"decode_graphs": True, "async_scheduling": True},
}


def engine_of(way: str | None, **changes: int) -> Engine:
    config = replace(PLAIN, **changes)
    return Engine(BACKBONE, config if way is None else replace(config, **WAYS[way]))


@cache
def prompt_of(num_virtual_tokens: int, kind: str = "embeddings") -> TaskPrompt:
    generator = torch.Generator().manual_seed(num_virtual_tokens)
    width = BACKBONE.kv_row_size if kind == "kv" else BACKBONE.hidden_size
    make = TaskPrompt.from_kv if kind == "kv" else TaskPrompt.from_embeddings
    return make(torch.randn(num_virtual_tokens, width, generator=generator) * 0.5, BACKBONE.fingerprint)


def text_of(seed: int, length: int) -> list[int]:
    return [0, *torch.randint(3, 259, (length - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


def params_of(number: int) -> SamplingParams:
    """One after another: greedy, drawn, penalized, biased, stopped by ids and by a string, with log-probabilities."""
    return [
        SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
        SamplingParams(temperature=1.2, top_p=0.9, seed=number, max_tokens=12, ignore_eos=True, logprobs=3),
        SamplingParams(temperature=0.8, seed=number, max_tokens=10, frequency_penalty=1.0, repetition_penalty=1.3),
        SamplingParams(temperature=0, max_tokens=7, logit_bias={5: 3.0, 9: 3.5}, prompt_logprobs=2, logprobs=0),
        SamplingParams(temperature=1.5, seed=number, max_tokens=20, stop_token_ids=tuple(range(3, 60))),
        SamplingParams(temperature=1.5, seed=number, max_tokens=20, stop=("e", "a", "t"), ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=2, logprob_token_ids=(7, 8)),
        SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=1),
    ][number % 8]


def add(engine: Engine, number: int) -> int:
    """Sequence `number` of a fixed mixture."""
    text = text_of(number, 1 + 7 * number % 23)
    prompts = [None, prompt_of(5), prompt_of(8), prompt_of(7, "kv"), prompt_of(1)]
    prompt = prompts[number % 5]
    if number % 9 == 8:
        targets = {len(text) - 1: (4, 5, 6), max(0, len(text) - 3): (7,)}
        return engine.add(text, score_targets=targets, prompt=prompt)
    shared = len(text) // 2 if number % 3 == 0 else 0
    return engine.add(text, prompt=prompt, params=params_of(number), num_shared_tokens=shared)


def answer_of(deltas: list[Delta | PathScores]) -> dict[str, object]:
    """All a reader of the deltas can know, but when it came; cached tokens depend on when, too."""
    if isinstance(deltas[-1], PathScores):
        (scores,) = deltas
        nothing = answer_of([Delta(finish_reason=scores.finish_reason)])
        return {**nothing, "scores": scores.logprobs}
    return {
        "tokens": naive.tokens(deltas),
        "text": "".join(delta.text for delta in deltas),
        "logprobs": [entry for delta in deltas for entry in delta.logprobs or ()],
        "prompt_logprobs": [entry for delta in deltas for entry in delta.prompt_logprobs or ()],
        "scores": None,
        "reasons": [delta.finish_reason for delta in deltas],
        "stop": deltas[-1].stop_reason,
    }


def assert_same(found: dict[str, object], wanted: dict[str, object]) -> None:
    for name in ("tokens", "text", "reasons", "stop"):
        assert found[name] == wanted[name]
    for name in ("logprobs", "prompt_logprobs"):
        entries, wanted_entries = found[name], wanted[name]
        assert len(entries) == len(wanted_entries)  # type: ignore[arg-type]
        for entry, other in zip(entries, wanted_entries, strict=True):  # type: ignore[call-overload]
            assert (entry is None) is (other is None)
            if entry is not None:
                assert entry.token_id == other.token_id
                assert entry.logprob == pytest.approx(other.logprob, abs=1e-3)
                assert [value for _, value in entry.top] == pytest.approx([value for _, value in other.top], abs=1e-3)
    assert (found["scores"] is None) is (wanted["scores"] is None)
    if found["scores"] is not None:
        assert found["scores"] == pytest.approx(wanted["scores"], abs=1e-3)


@cache
def wanted_of(number: int) -> dict[str, object]:
    """The sequence alone on the plain engine."""
    engine = engine_of(None)
    sequence_id = add(engine, number)
    return answer_of(naive.run(engine)[sequence_id])


@pytest.mark.parametrize("num_blocks", [60, 24], ids=["room for all", "preemption"])
@pytest.mark.parametrize("way", WAYS)
def test_a_mixture_of_everything_is_answered_as_alone_on_the_plain_engine(way: str, num_blocks: int) -> None:
    engine = engine_of(way, num_blocks=num_blocks)
    ids = [add(engine, number) for number in range(36)]
    found = naive.run(engine)
    for number, sequence_id in enumerate(ids):
        assert_same(answer_of(found[sequence_id]), wanted_of(number))
    assert (engine.stats.num_preemptions > 0) is (num_blocks == 24)
    reasons = {deltas[-1].finish_reason for deltas in found.values()}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), way=st.sampled_from(list(WAYS)), num_blocks=st.sampled_from([24, 32, 60]))
def test_arrivals_and_cancels_at_any_time_change_no_other_answer(seed: int, way: str, num_blocks: int) -> None:
    engine, choice = engine_of(way, num_blocks=num_blocks), random.Random(seed)
    waiting, number_of, found = list(range(16)), {}, {}
    aborted: set[int] = set()
    while waiting or engine.has_unfinished:
        for _ in range(min(len(waiting), choice.randrange(4))):
            number = waiting.pop()
            number_of[add(engine, number)] = number
        running = [i for i in number_of if i not in aborted and not (found.get(i) and found[i][-1].finish_reason)]
        if running and choice.random() < 0.15:
            aborted.add(choice.choice(running))
            engine.abort(max(aborted))
        for sequence_id, delta in naive.step(engine):
            assert sequence_id not in aborted or sequence_id != max(aborted)
            found.setdefault(sequence_id, []).append(delta)
        engine.scheduler.audit()
    for sequence_id, number in number_of.items():
        if sequence_id not in aborted:
            assert_same(answer_of(found[sequence_id]), wanted_of(number))
    while engine.scheduler.prefix_cache.evict():
        pass
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


# How far it runs ahead


def test_running_ahead_hands_out_a_step_later_and_computes_one_row_too_many() -> None:
    plain, ahead = engine_of(None), engine_of("asynchronous")
    for engine in (plain, ahead):
        engine.add(text_of(1, 5), params=SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert [len(plain.step()) for _ in range(4)] == [1, 1, 1, 1]
    assert [len(ahead.step()) for _ in range(5)] == [0, 1, 1, 1, 1]
    assert not ahead.has_unfinished


def test_the_length_is_known_beforehand_so_nothing_is_computed_after_it() -> None:
    engine = engine_of("asynchronous")
    counts, run = [], engine.model_runner.run

    def counted(batch: object, *rest: object) -> object:
        counts.append(batch.num_tokens)  # type: ignore[attr-defined]
        return run(batch, *rest)  # type: ignore[arg-type]

    engine.model_runner.run = counted  # type: ignore[assignment, method-assign]
    engine.add(text_of(1, 5), params=SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    naive.run(engine)
    assert counts == [5, 1, 1, 1, 0]


def test_a_row_computed_after_the_end_is_dropped_and_its_block_is_clean_for_the_next() -> None:
    engine, wanted = engine_of("asynchronous", num_blocks=8), engine_of(None)
    first = naive.tokens(next(iter(naive.run(_with(wanted, 4, SamplingParams(temperature=0, max_tokens=9,
                                                                             ignore_eos=True))).values())))  # fmt: skip
    stopped = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, stop_token_ids=(first[3],))
    for _ in range(5):
        found = naive.run(_with(engine, 4, stopped))
        assert [naive.tokens(deltas) for deltas in found.values()] == [first[: first.index(first[3]) + 1]]
        found = naive.run(_with(engine, 4, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)))
        assert [naive.tokens(deltas) for deltas in found.values()] == [first]


def _with(engine: Engine, seed: int, params: SamplingParams) -> Engine:
    engine.add(text_of(seed, 6), params=params)
    return engine


def test_a_sequence_with_penalties_waits_for_its_token_while_others_continue() -> None:
    engine = engine_of("asynchronous")
    penalized = engine.add(
        text_of(1, 5), params=SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, presence_penalty=1)
    )
    other = engine.add(text_of(2, 5), params=SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    step_to_ids = [sorted(sequence_id for sequence_id, _ in engine.step()) for _ in range(10)]
    assert [other in ids for ids in step_to_ids[1:9]] == [True] * 8
    assert [penalized in ids for ids in step_to_ids[1:9]] == [True, False] * 4


def test_a_step_that_fails_ends_those_whose_tokens_were_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("asynchronous")
    ids = [add(engine, number) for number in (0, 1)]
    engine.step()

    def fail(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(engine.model_runner, "run", fail)
        with pytest.raises(MemoryError):
            engine.step()
    assert {i: delta.finish_reason for i, delta in engine.reset()} == dict.fromkeys(ids, FinishReason.ERROR)
    assert not engine.has_unfinished
    engine.scheduler.audit()
    again = add(engine, 0)
    assert_same(answer_of(naive.run(engine)[again]), wanted_of(0))


def test_text_computed_while_running_ahead_is_found_again_by_the_next() -> None:
    engine = engine_of("asynchronous")
    text = text_of(1, 9)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    first = engine.add(text, prompt=prompt_of(5), params=params)
    tokens = naive.tokens(naive.run(engine)[first])
    longer = engine.add([*text, *tokens, 7], prompt=prompt_of(5), params=params)
    (deltas,) = (naive.run(engine)[longer],)
    # all but the last token chosen were computed: 5 + 9 + 11, of which the full blocks of four are kept
    assert deltas[0].num_cached_tokens == 24
    wanted, _ = naive.greedy(BACKBONE, prompt_of(5), [*text, *tokens, 7], 12)
    assert naive.tokens(deltas) == wanted


# On a GPU


@pytest.fixture(scope="module")
def on_cuda() -> Backbone:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: on a CPU nothing is captured, and nothing waits")
    return replace(BACKBONE, model=copy.deepcopy(BACKBONE.model).cuda())


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_a_mixture_of_everything_is_answered_on_the_gpu_as_on_the_cpu(way: str, on_cuda: Backbone) -> None:
    engine = Engine(on_cuda, replace(PLAIN, **WAYS[way]))
    ids = [add(engine, number) for number in range(36)]
    found = naive.run(engine)
    for number, sequence_id in enumerate(ids):
        assert_same(answer_of(found[sequence_id]), wanted_of(number))


@pytest.mark.gpu
def test_telling_the_device_a_decode_step_never_waits_for_it(on_cuda: Backbone) -> None:
    engine = Engine(on_cuda, replace(PLAIN, **WAYS["both"]))
    for number in (0, 1, 4):
        engine.add(text_of(number, 9), prompt=prompt_of(5), params=params_of(number))
    for _ in range(3):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = engine.begin_step(0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(pending.read_out.choosers) == 3
