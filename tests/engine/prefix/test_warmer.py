"""A warmed prompt gives what a computed one gives, to the bit, and takes room from no other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from app.engine.engine import Engine
from app.engine.prefix.prefix_store import MAX_PENDING
from app.errors import NumericalError
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics
from tests.engine.test_engine import BACKBONE, bits_of, greedy_params, only, prompt_of, read, text_of
from tests.engine.test_engine import make_engine as make_small_engine
from tests.support import naive


def make_engine(metrics: Metrics | None = None, **changes: object) -> Engine:
    return make_small_engine(metrics=metrics, **{"block_size": 16, **changes})  # type: ignore[arg-type]


def answer(engine: Engine, prompt: TaskPrompt) -> tuple[list[object], int]:
    """What a request gets, and how many of its tokens were computed before."""
    engine.add(text_of(3), prompt=prompt, params=greedy_params(logprobs=5))
    deltas = only(naive.run(engine))
    return bits_of(deltas), deltas[0].num_cached_tokens


def warm(engine: Engine, prompt: TaskPrompt) -> bool:
    is_warm = engine.warm(prompt)
    engine.scheduler.audit()
    return is_warm


@pytest.mark.parametrize("kind", ["embeddings", "kv"])
@pytest.mark.parametrize("budget", [8, 64])
def test_the_first_request_of_a_warm_prompt_computes_only_its_text(kind: str, budget: int) -> None:
    prompt, metrics = prompt_of(37, kind=kind), Metrics()
    engine = make_engine(metrics=metrics, max_num_batched_tokens=budget)
    cold, _ = answer(make_engine(max_num_batched_tokens=budget), prompt)
    assert warm(engine, prompt)
    found, num_cached = answer(engine, prompt)
    assert found == cold
    assert num_cached == 37
    assert read(metrics, "prompts_warmed_total") == 1
    assert not warm(engine, prompt), "it is warm already"


def test_in_memory_half_of_the_blocks_stay_free_and_used_prompts_stay() -> None:
    engine = make_engine(num_blocks=1 + 16)
    used = prompt_of(30, seed=100)
    answer(engine, used)
    prompts = [prompt_of(30, seed=seed) for seed in range(8)]
    assert [warm(engine, prompt) for prompt in prompts] == [True] * 3 + [False] * 5
    assert not any(engine.warmer.wants(prompt.digest, prompt.kind, 30) for prompt in prompts)
    assert engine.stats.num_free_blocks == 8
    kept = [prompt.digest in engine.scheduler.prefix_cache for prompt in prompts]
    assert kept == [True] * 3 + [False] * 5
    answer(engine, prompt_of(150, seed=200))  # ten blocks, and some for the text
    assert used.digest in engine.scheduler.prefix_cache, "those that were not asked for go first"
    assert sum(prompt.digest in engine.scheduler.prefix_cache for prompt in prompts) < 3


def test_where_memory_has_no_room_prompts_go_to_the_store_and_only_while_it_has(tmp_path: Path) -> None:
    file_bytes = 32 + 4 * 30 * BACKBONE.kv_row_size
    engine = make_engine(num_blocks=1 + 8, prefix_store=tmp_path, prefix_store_bytes=4 * file_bytes)
    prompts = [prompt_of(30, seed=seed) for seed in range(6)]
    found = []
    for prompt in prompts:
        found.append(warm(engine, prompt))
        engine.prefix_store.writer.submit(int).result()  # type: ignore[union-attr]
    assert found == [True] * 4 + [False] * 2
    assert len(engine.prefix_store) == 4  # type: ignore[arg-type]
    in_memory = [prompt.digest in engine.scheduler.prefix_cache for prompt in prompts]
    assert in_memory == [True] * 2 + [False] * 4
    for prompt in prompts[:4]:
        got, num_cached = answer(engine, prompt)
        assert (got, num_cached) == (answer(make_engine(), prompt)[0], 30)
    engine.close()
    again = make_engine(prefix_store=tmp_path, prefix_store_bytes=4 * file_bytes)
    assert all(map(again.warm, prompts)), "read into memory after a restart"
    again.close()


def test_a_kv_prompt_is_not_put_into_the_store(tmp_path: Path) -> None:
    engine = make_engine(num_blocks=1 + 3, prefix_store=tmp_path, prefix_store_bytes=2**20)
    prompt = prompt_of(30, kind="kv")
    assert not engine.warmer.wants(prompt.digest, prompt.kind, 30)
    assert not warm(engine, prompt)


def test_a_prompt_that_fills_every_position_is_left_alone() -> None:
    engine = make_engine()
    length = engine.config.max_model_len
    assert not warm(engine, prompt_of(length))
    assert warm(engine, prompt_of(length - 1))


def test_blocks_in_use_are_never_taken(tmp_path: Path) -> None:
    engine = make_engine(num_blocks=1 + 6, prefix_store=tmp_path, prefix_store_bytes=2**20)
    engine.add(text_of(1, 70), params=greedy_params(max_tokens=10))
    engine.step()
    engine.step()
    assert not engine.warmer.warm(prompt_of(30), lambda: False), "two blocks are not free"
    engine.scheduler.audit()
    naive.run(engine)
    assert warm(engine, prompt_of(30))


def test_for_the_store_only_what_it_has_too_leaves_memory(tmp_path: Path) -> None:
    used, kept = prompt_of(30, kind="kv"), prompt_of(30, seed=1)
    engine = make_engine(num_blocks=1 + 5, prefix_store=tmp_path, prefix_store_bytes=2**20)
    engine.add(text_of(3, 1), prompt=used, params=greedy_params(max_tokens=1))
    naive.run(engine)
    assert warm(engine, kept), "three blocks are free"
    assert used.digest in engine.scheduler.prefix_cache
    engine.add(text_of(3, 1), prompt=kept, params=greedy_params(max_tokens=1))
    naive.run(engine)
    assert warm(engine, prompt_of(30, seed=2))
    in_memory = [prompt.digest in engine.scheduler.prefix_cache for prompt in (used, kept)]
    assert in_memory == [True, False], "the one that would have to be computed or sent again stays"
    assert not warm(engine, prompt_of(60, seed=3)), "four blocks, of which two are not to be had"
    engine.close()


def test_a_prompt_that_fits_no_cache_is_not_wanted_and_nothing_leaves_for_it(tmp_path: Path) -> None:
    engine = make_engine(num_blocks=1 + 3, prefix_store=tmp_path, prefix_store_bytes=2**20)
    small, large = prompt_of(10), prompt_of(60)
    warm(engine, small)
    assert not engine.warmer.wants(large.digest, large.kind, 60)
    assert not warm(engine, large)
    assert small.digest in engine.scheduler.prefix_cache
    engine.close()


def test_a_long_prompt_gives_up_between_two_forwards() -> None:
    engine = make_engine(max_num_batched_tokens=8)
    asked = []

    def should_stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    assert not engine.warm(prompt_of(30), should_stop)
    assert len(asked) == 3
    engine.scheduler.audit()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_what_is_not_finite_is_refused_and_gives_its_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine.model_runner, "computed_rows", lambda prefix: torch.full((2, 2), torch.nan))
    with pytest.raises(NumericalError):
        engine.warm(prompt_of(30))
    engine.scheduler.audit()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    assert len(engine.scheduler.prefix_cache) == 0


def test_a_failed_forward_gives_its_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model_runner, "run", fail)
        with pytest.raises(RuntimeError):
            engine.warm(prompt_of(30))
    engine.scheduler.audit()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    assert warm(engine, prompt_of(30))


def test_while_too_many_wait_to_be_written_none_is_computed_for_the_store(tmp_path: Path) -> None:
    engine = make_engine(num_blocks=1 + 4, prefix_store=tmp_path, prefix_store_bytes=2**20)
    assert engine.prefix_store is not None
    warm(engine, prompt_of(30, seed=0))
    gate = threading.Event()
    engine.prefix_store.writer.submit(gate.wait)
    for number in range(MAX_PENDING):
        engine.prefix_store.keep(f"{number:064x}", lambda: torch.zeros(1, BACKBONE.kv_row_size))
    assert not warm(engine, prompt_of(30, seed=1))
    gate.set()
    engine.prefix_store.writer.submit(int).result()
    assert warm(engine, prompt_of(30, seed=1))
    engine.close()
