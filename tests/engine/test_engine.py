from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.output import Delta, TextOutput
from app.engine.sequence import FinishReason
from app.errors import InvalidInput, Overloaded
from app.model.attention import attend_reference, attend_sdpa
from app.model.loading.checkpoint import weights_digest
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics
from tests.support import naive
from tests.support.models import byte_tokenizer, tiny_backbone

BACKBONE = tiny_backbone("llama")
SIZES = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "block_size": 4,
    "num_blocks": 200,
    "max_waiting_requests": 50,
    "max_waiting_tokens": 10_000,
}


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_engine(clock: Clock | None = None, metrics: Metrics | None = None, **changes: int) -> Engine:
    config = EngineConfig(**{**SIZES, **changes})
    return Engine(BACKBONE, config, metrics, clock=clock or Clock())


def prompt_of(num_virtual_tokens: int, seed: int = 0, kind: str = "embeddings") -> TaskPrompt:
    generator = torch.Generator().manual_seed(seed)
    width = BACKBONE.kv_row_size if kind == "kv" else BACKBONE.hidden_size
    rows = torch.randn(num_virtual_tokens, width, generator=generator) * 0.5
    make = TaskPrompt.from_kv if kind == "kv" else TaskPrompt.from_embeddings
    return make(rows, BACKBONE.fingerprint)


def poisoned_prompt(num_virtual_tokens: int = 10) -> TaskPrompt:
    """Finite keys whose products with any query are not."""
    return TaskPrompt.from_kv(torch.full((num_virtual_tokens, BACKBONE.kv_row_size), 3e38), BACKBONE.fingerprint)


def greedy_params(max_tokens: int = 8, **changes: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **changes})  # type: ignore[arg-type]


def text_of(seed: int, length: int = 6) -> list[int]:
    return [0, *torch.randint(3, 259, (length - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


def only(found: dict[int, list[Delta]]) -> list[Delta]:
    (deltas,) = found.values()
    return deltas


# Isolation (P5): a neighbor's content changes nothing, to the bit


def bits_of(deltas: list[Delta]) -> list[object]:
    return [(d.token_ids, d.logprobs) for d in deltas]


@pytest.mark.parametrize("kind", ["embeddings", "kv"])
def test_an_answer_is_bit_identical_whatever_neighbors_of_the_same_shape_hold(kind: str) -> None:
    runs = []
    for seed in range(4):
        engine = make_engine()
        ids = [engine.add(text_of(1), prompt=prompt_of(10), params=greedy_params(logprobs=20))]
        for k in range(4):
            neighbor = prompt_of(10 + k, seed=7 + 100 * seed + k, kind=kind)
            engine.add(text_of(1000 * seed + k, 5 + k), prompt=neighbor, params=greedy_params())
        runs.append(bits_of(naive.run(engine)[ids[0]]))
    assert all(run == runs[0] for run in runs[1:])


def test_a_poisoned_neighbor_gets_an_error_and_changes_no_bit_of_the_others() -> None:
    runs = []
    for neighbor in (prompt_of(10, seed=5, kind="kv"), poisoned_prompt()):
        engine = make_engine()
        healthy = [engine.add(text_of(k), prompt=prompt_of(7), params=greedy_params(logprobs=20)) for k in range(3)]
        # it generates one token in the healthy run, and fails where it would have
        other = engine.add(text_of(9), prompt=neighbor, params=greedy_params(max_tokens=1))
        found = naive.run(engine)
        runs.append([bits_of(found[sequence_id]) for sequence_id in healthy])
        reason = found[other][-1].finish_reason
        assert reason is (FinishReason.LENGTH if len(runs) == 1 else FinishReason.ERROR)
    assert runs[0] == runs[1]


def test_blocks_that_held_poison_are_clean_for_the_next_owner() -> None:
    # the shorter of two is computed as wide as the longer, over what lies after its own end in its last block
    short, long = text_of(2), text_of(3, 20)
    wanted = [naive.greedy(BACKBONE, prompt_of(9), ids, 8)[0] for ids in (short, long)]
    for attempt in range(6):
        engine = make_engine(num_blocks=20)
        for seed in range(attempt + 1):
            engine.add(text_of(seed, 30), prompt=poisoned_prompt(), params=greedy_params())
            assert only(naive.run(engine))[-1].finish_reason is FinishReason.ERROR
            assert len(engine.scheduler.prefix_cache) == 0, "a poisoned prefix can be found again"
        assert not torch.isfinite(engine.model_runner.kv_cache.blocks).all(), "nothing was poisoned"
        for ids in (short, long):
            engine.add(ids, prompt=prompt_of(9), params=greedy_params())
        assert [naive.tokens(deltas) for deltas in naive.run(engine).values()] == wanted


def test_all_users_of_a_poisoned_prompt_fail_and_give_everything_back() -> None:
    engine = make_engine()
    for k in range(5):
        engine.add(text_of(k), prompt=poisoned_prompt(), params=greedy_params(), num_shared_tokens=k % 3)
    engine.add(text_of(9), score_targets={5: (3, 4)}, prompt=poisoned_prompt(), num_shared_tokens=2)
    found = naive.run(engine)
    assert [deltas[-1].finish_reason for deltas in found.values()] == [FinishReason.ERROR] * 6
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


@pytest.mark.parametrize("attend", [attend_reference, attend_sdpa, None])
def test_the_attention_implementation_does_not_change_a_token(attend: object) -> None:
    engine = Engine(BACKBONE, EngineConfig(**SIZES), attend=attend)  # type: ignore[arg-type]
    wanted = {}
    for k in range(5):
        prompt = prompt_of(3 + 5 * k)
        sequence_id = engine.add(text_of(k, 4 + k), prompt=prompt, params=greedy_params())
        wanted[sequence_id] = naive.greedy(BACKBONE, prompt, text_of(k, 4 + k), 8)[0]
    assert {i: naive.tokens(deltas) for i, deltas in naive.run(engine).items()} == wanted


# How sequences end


def test_a_sequence_ends_at_its_length() -> None:
    engine = make_engine()
    engine.add(text_of(1), params=greedy_params(5))
    deltas = only(naive.run(engine))
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + [FinishReason.LENGTH]
    assert deltas[-1].stop_reason is None
    text = "".join(delta.text for delta in deltas)
    assert text == byte_tokenizer().decode(naive.tokens(deltas))


def test_an_end_of_sequence_token_ends_it_and_shows_nothing() -> None:
    wanted = naive.greedy(BACKBONE, None, text_of(1), 6)[0]
    for params, num_tokens in (
        (SamplingParams(logit_bias={1: 100}), 1),
        (SamplingParams(logit_bias={1: 100}, ignore_eos=True), 16),
    ):
        engine = make_engine()
        engine.add(text_of(1), params=params)
        deltas = only(naive.run(engine))
        assert naive.tokens(deltas) == [1] * num_tokens
        assert "".join(delta.text for delta in deltas) == ""
        assert deltas[-1].stop_reason is None
    engine = make_engine()
    engine.add(text_of(1), params=greedy_params(20, stop_token_ids=(wanted[3],)))
    deltas = only(naive.run(engine))
    first = wanted.index(wanted[3])
    assert naive.tokens(deltas) == wanted[: first + 1]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, wanted[3])


@pytest.mark.parametrize("is_included", [False, True])
def test_a_stop_string_ends_it(is_included: bool) -> None:
    bias = {i: -100.0 for i in range(259) if i < 3 or not 0x61 <= _byte_of(i) <= 0x7A}
    engine = make_engine()
    engine.add(text_of(1), params=greedy_params(12, logit_bias=bias))
    text = "".join(delta.text for delta in only(naive.run(engine)))
    assert len(text) == 12
    stop = text[4:6]
    end = text.index(stop) + (2 if is_included else 0)
    engine.add(
        text_of(1), params=greedy_params(12, logit_bias=bias, stop=(stop,), include_stop_str_in_output=is_included)
    )
    deltas = only(naive.run(engine))
    assert "".join(delta.text for delta in deltas) == text[:end]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, stop)


def _byte_of(token_id: int) -> int:
    from app.engine.output.detokenizer import token_bytes

    return token_bytes(byte_tokenizer(), token_id)[0]


def test_no_new_tokens_means_one_empty_delta() -> None:
    engine = make_engine()
    engine.add(text_of(1), prompt=prompt_of(5), params=greedy_params(0))
    (delta,) = only(naive.run(engine))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", (), FinishReason.LENGTH)


def test_a_deadline_ends_waiting_and_running_ones_with_what_they_have() -> None:
    clock = Clock()
    engine = make_engine(clock, max_num_seqs=1)
    running = engine.add(text_of(1), params=greedy_params(100), deadline_s=5)
    waiting = engine.add(text_of(2), params=greedy_params(100), deadline_s=5)
    patient = engine.add(text_of(3), params=greedy_params(3))
    for _ in range(4):
        engine.step()
    clock.now_s = 5.0
    ended = naive.run(engine)
    assert {i: deltas[-1].finish_reason for i, deltas in ended.items()} == {
        running: FinishReason.DEADLINE,
        waiting: FinishReason.DEADLINE,
        patient: FinishReason.LENGTH,
    }


def test_an_aborted_sequence_says_nothing_more_and_gives_its_blocks_back() -> None:
    metrics = Metrics()
    engine = make_engine(metrics=metrics)
    sequence_id = engine.add(text_of(1), prompt=prompt_of(10), params=greedy_params(100))
    engine.step()
    assert read(metrics, "num_requests_running") == 1
    engine.abort(sequence_id)
    assert read(metrics, "num_requests_running") == 0, "there may be no step for a long time"
    engine.abort(sequence_id)
    engine.abort(12345)
    assert not engine.has_unfinished
    assert engine.step() == []
    assert engine.scheduler.prefix_cache.evict()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_a_failed_step_loses_no_delta_it_had_already_found(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    first = engine.add(text_of(1), params=greedy_params(1))
    second = engine.add(text_of(2), params=greedy_params(5))
    whole = TextOutput.add

    def fail_second(output: TextOutput, *rest: object) -> object:
        if output.sequence.sequence_id == second:
            raise RuntimeError
        return whole(output, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TextOutput, "add", fail_second)
    with pytest.raises(RuntimeError):
        engine.step()
    reasons = {i: delta.finish_reason for i, delta in engine.reset()}
    assert reasons == {first: FinishReason.LENGTH, second: FinishReason.ERROR}
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    engine.scheduler.audit()


# What is computed once


def test_a_prompt_and_a_shared_text_are_computed_once() -> None:
    engine = make_engine()
    ids = text_of(1, 30)
    siblings = [engine.add(ids, prompt=prompt_of(20), params=greedy_params(1), num_shared_tokens=29) for _ in range(6)]
    assert len(engine.step()) == 6
    alone = make_engine()
    for _ in siblings:
        alone.add(ids, prompt=prompt_of(20), params=greedy_params(1))
    assert len(alone.step()) == 1  # the others do not fit into the budget of 64


def test_cached_tokens_are_reported() -> None:
    engine = make_engine()
    counts = []
    for _ in range(2):
        engine.add(text_of(1), prompt=prompt_of(20), params=greedy_params(2), num_shared_tokens=3)
        counts.append([delta.num_cached_tokens for delta in only(naive.run(engine))])
    assert counts == [[0, 0], [20, 20]]


def test_samples_of_one_text_differ_by_their_seeds_only() -> None:
    engine = make_engine()
    params = [
        SamplingParams(temperature=1.5, max_tokens=12, seed=seed, ignore_eos=True) for seed in (1, 1, 2, None, None)
    ]
    ids = [engine.add(text_of(1), params=each, num_shared_tokens=5) for each in params]
    found = naive.run(engine)
    tokens = [tuple(naive.tokens(found[i])) for i in ids]
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 4


def test_serving_changes_no_weight() -> None:
    before = weights_digest(BACKBONE.model)
    engine = make_engine()
    engine.add(text_of(1), prompt=prompt_of(20), params=greedy_params(3))
    naive.run(engine)
    assert weights_digest(BACKBONE.model) == before


# Log-probabilities of the text


@pytest.mark.parametrize("budget", [8, 9, 64])
def test_the_texts_log_probabilities_come_once_and_whole_through_chunks_and_preemption(budget: int) -> None:
    engine = make_engine(num_blocks=40, max_num_batched_tokens=budget)
    wanted = {}
    for k in range(6):
        ids, prompt = text_of(k, 20 + k), prompt_of(9, kind="kv") if k % 2 else None
        sequence_id = engine.add(ids, prompt=prompt, params=greedy_params(20, prompt_logprobs=2), num_shared_tokens=4)
        wanted[sequence_id] = (ids, naive.text_logits(BACKBONE, prompt, ids).log_softmax(-1))
    found = naive.run(engine)
    assert engine.stats.num_preemptions > 0
    for sequence_id, (ids, logprobs) in wanted.items():
        reported = [delta.prompt_logprobs for delta in found[sequence_id]]
        assert reported[0] is not None
        assert reported[1:] == [None] * (len(reported) - 1)
        assert len(reported[0]) == len(ids)
        for i, entry in enumerate(reported[0][1:]):
            assert entry is not None
            assert entry.token_id == ids[i + 1]
            assert entry.logprob == pytest.approx(float(logprobs[i, ids[i + 1]]), abs=1e-3)
            assert len(entry.top) == 2


def test_a_long_text_with_log_probabilities_is_computed_in_bounded_chunks() -> None:
    engine = make_engine(max_num_batched_tokens=512)
    ids = text_of(1, 400)
    engine.add(ids, params=greedy_params(0, prompt_logprobs=0))
    engine.step()
    assert engine.has_unfinished
    (delta,) = only(naive.run(engine))
    logprobs = naive.text_logits(BACKBONE, None, ids).log_softmax(-1)
    total = sum(float(logprobs[i, ids[i + 1]]) for i in range(399))
    assert delta.prompt_logprobs is not None
    assert sum(entry.logprob for entry in delta.prompt_logprobs[1:] if entry) == pytest.approx(total, rel=1e-4)


# Admission and sizes


def test_a_full_queue_is_refused_and_nothing_is_kept_of_the_refused() -> None:
    engine = make_engine(max_waiting_requests=2, max_waiting_tokens=20)
    engine.add(text_of(1), params=greedy_params())
    with pytest.raises(Overloaded):
        engine.add(text_of(1, 15), params=greedy_params())
    engine.add(text_of(1), params=greedy_params())
    with pytest.raises(Overloaded):
        engine.add(text_of(1, 2), params=greedy_params())
    assert len(naive.run(engine)) == 2


def test_an_empty_queue_takes_a_text_of_any_length() -> None:
    engine = make_engine(max_waiting_tokens=5)
    engine.add(text_of(1, 50), params=greedy_params(1))
    assert len(naive.run(engine)) == 1


def test_a_written_prompt_with_ids_the_backbone_has_not_is_refused() -> None:
    prompt = TaskPrompt.from_text("odd", [0, 259], BACKBONE.fingerprint)
    with pytest.raises(InvalidInput):
        make_engine().add(text_of(1), prompt=prompt, params=greedy_params(1))


def test_a_text_may_fill_every_position_and_not_one_more() -> None:
    engine = make_engine(max_model_len=32)
    engine.add(text_of(1, 12), prompt=prompt_of(10), params=greedy_params(10))
    assert len(naive.tokens(only(naive.run(engine)))) == 10
    with pytest.raises(InvalidInput) as caught:
        engine.add(text_of(1, 12), prompt=prompt_of(10), params=greedy_params(11))
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidInput) as caught:
        engine.add(text_of(1, 33), params=greedy_params(1))
    assert caught.value.param == "prompt"


def test_sizes_follow_from_the_memory_given() -> None:
    bytes_per_token = BACKBONE.kv_shape.num_bytes_per_token(BACKBONE.dtype)
    config = EngineConfig.sized_for(BACKBONE, block_size=8, kv_cache_bytes=100 * 8 * bytes_per_token, max_num_seqs=100)
    assert (config.num_blocks, config.block_size, config.max_model_len) == (101, 8, 512)
    assert config.max_num_batched_tokens >= config.max_num_seqs == 100
    small = EngineConfig.sized_for(BACKBONE, max_model_len=100, max_num_seqs=1, kv_cache_bytes=2**30)
    assert small.num_blocks == 2 * 7 + 1, "more blocks than sequences can fill"
    assert EngineConfig.sized_for(BACKBONE, max_num_batched_tokens=20).max_num_seqs == 20
    with pytest.raises(InvalidInput) as caught:
        EngineConfig.sized_for(BACKBONE, kv_cache_bytes=1000)
    assert caught.value.param == "kv_cache_memory"
    with pytest.raises(InvalidInput, match="at most 512, the positions of tiny-llama"):
        EngineConfig.sized_for(BACKBONE, max_model_len=513)


# What is measured


def read(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"softswap_{name}", labels) or 0.0


def test_metrics_count_what_happened() -> None:
    metrics, clock = Metrics(), Clock()
    engine = make_engine(clock, metrics)
    for k in range(2):
        engine.add(text_of(k, 6), prompt=prompt_of(20), params=greedy_params(3), flow="mood", num_shared_tokens=2)
    while engine.has_unfinished:
        clock.now_s += 0.5
        engine.step()
    # the first two tokens of the texts differ, so nothing of them was shared
    assert read(metrics, "prompt_tokens_total") == 12
    assert read(metrics, "generation_tokens_total") == 6
    assert read(metrics, "prefix_cache_queries_total") == 2 * (20 + 6)
    assert read(metrics, "prefix_cache_hits_total") == 0
    assert read(metrics, "task_requests_total", task="mood", finished_reason="length") == 2
    assert read(metrics, "num_requests_running") == read(metrics, "num_requests_waiting") == 0


def test_a_stage_that_was_never_reached_has_no_time() -> None:
    metrics, clock = Metrics(), Clock()
    engine = make_engine(clock, metrics, max_num_seqs=1)
    engine.add(text_of(1), params=greedy_params(2))
    late = engine.add(text_of(2), params=greedy_params(2), deadline_s=1)
    engine.step()
    clock.now_s = 9.0
    naive.run(engine)
    assert late == 1
    assert read(metrics, "e2e_request_latency_seconds_count") == 2
    for stage in ("time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert read(metrics, f"{stage}_seconds_count") == 1


def test_prompts_of_every_kind_mix_in_one_batch_without_changing_each_other() -> None:
    text_prompt = TaskPrompt.from_text("be brief", [0, 60, 61, 62], BACKBONE.fingerprint)
    prompts = [None, prompt_of(7), prompt_of(7, kind="kv"), text_prompt, prompt_of(8, kind="kv")]
    before = [copy.deepcopy(prompt.rows) if prompt else None for prompt in prompts]
    engine = make_engine()
    wanted = {}
    for prompt in prompts:
        for shared in (0, 3):
            sequence_id = engine.add(text_of(4), prompt=prompt, params=greedy_params(), num_shared_tokens=shared)
            wanted[sequence_id] = naive.greedy(BACKBONE, prompt, text_of(4), 8)[0]
    assert {i: naive.tokens(deltas) for i, deltas in naive.run(engine).items()} == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) == 5
    for prompt, rows in zip(prompts, before, strict=True):
        assert rows is None or torch.equal(prompt.rows, rows)  # type: ignore[union-attr, arg-type]
