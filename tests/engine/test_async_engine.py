from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from app.engine.admission import EngineRequest, Scoring
from app.engine.async_engine import AsyncEngine
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.model_runner import ModelRunner
from app.engine.output.output import Delta
from app.engine.sequence import FinishReason
from app.errors import (
    BackboneMismatch,
    DeadlineExceeded,
    Draining,
    EngineDead,
    InvalidInput,
    NumericalError,
    Overloaded,
    SoftswapError,
)
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from tests.support import naive
from tests.support.models import tiny_backbone

BACKBONE = tiny_backbone("llama")
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


SCHEDULING = {"async_scheduling": False}


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"], autouse=True)
def scheduling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here is one of both: from outside the engine they look alike."""
    monkeypatch.setitem(SCHEDULING, "async_scheduling", request.param)


def make_engine(**changes: int) -> AsyncEngine:
    sizes = {
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 16,
        "num_blocks": 200,
        "max_waiting_requests": 500,
        "max_waiting_tokens": 100_000,
    }
    return AsyncEngine(Engine(BACKBONE, EngineConfig(**{**sizes, **SCHEDULING, **changes})))


@asynccontextmanager
async def running(**changes: int) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(**changes)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def prompt_of(num_virtual_tokens: int) -> TaskPrompt:
    generator = torch.Generator().manual_seed(num_virtual_tokens)
    rows = torch.randn(num_virtual_tokens, BACKBONE.hidden_size, generator=generator) * 0.5
    return TaskPrompt.from_embeddings(rows, BACKBONE.fingerprint)


def poisoned_prompt() -> TaskPrompt:
    """Finite keys whose products with any query are not."""
    return TaskPrompt.from_kv(torch.full((20, BACKBONE.kv_row_size), 3e38), BACKBONE.fingerprint)


async def tokens_of(
    engine: AsyncEngine, ids: list[int], *, deadline_s: float | None = None, **arguments: Any
) -> list[int]:
    request = EngineRequest(token_ids=ids, **{"params": GREEDY, **arguments})
    deltas = [delta async for delta in engine.generate(request, deadline_s=deadline_s)]
    assert [delta.finish_reason is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    return naive.tokens(deltas)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        await asyncio.sleep(0.002)


def is_idle(engine: AsyncEngine) -> bool:
    return engine.stats.num_running == engine.stats.num_waiting == 0


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=120))


@pytest.fixture
def broken_runner(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the next steps of every engine fail as a device out of memory would."""

    def break_it(num_steps: int) -> None:
        whole = ModelRunner.run
        left = [num_steps]

        def fail(*arguments: object) -> object:
            if left[0] > 0:
                left[0] -= 1
                raise RuntimeError("out of memory")
            return whole(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(ModelRunner, "run", fail)

    return break_it


def test_200_requests_at_once_each_get_their_own_answer() -> None:
    async def check() -> None:
        prompts = [None, *(prompt_of(n) for n in (1, 7, 20, 50))]
        texts = [[0, *range(10 + k, 14 + k)] for k in range(8)]
        kinds = [(prompts[k % 5], texts[k % 8]) for k in range(200)]
        async with running() as engine:
            found = await asyncio.gather(*(tokens_of(engine, ids, prompt=p, flow=str(p)[:40]) for p, ids in kinds))
            assert is_idle(engine)
        wanted = {i: naive.greedy(BACKBONE, *kinds[i], 8)[0] for i in range(40)}
        assert all(found[i] == wanted[i % 40] for i in range(200))
        assert len({tuple(tokens) for tokens in found}) > 20

    run(check)


def test_leaving_a_stream_frees_its_row_within_one_step() -> None:
    async def check() -> None:
        async with running() as engine:
            stream = engine.generate(EngineRequest(token_ids=[0, 5, 6], params=LONG))
            await anext(stream)
            assert engine.stats.num_running == 1
            before = engine.stats.num_steps
            await stream.aclose()
            await until(lambda: is_idle(engine))
            assert engine.stats.num_steps <= before + 2  # the one that ran while we left, and none after it
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(check)


def test_a_cancelled_task_frees_its_row_wherever_it_waits() -> None:
    async def check() -> None:
        async with running(max_num_seqs=2) as engine:
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG)) for k in range(6)]
            await until(lambda: engine.stats.num_running == 2 and engine.stats.num_waiting == 4)
            for task in tasks:
                task.cancel()
            assert all(isinstance(end, asyncio.CancelledError) for end in await _ends(tasks))
            await until(lambda: is_idle(engine))
            assert engine.stats.num_free_blocks == engine.stats.num_blocks
            assert await tokens_of(engine, [0, 5, 6]) == naive.greedy(BACKBONE, None, [0, 5, 6], 8)[0]

    run(check)


def test_a_stream_closed_before_its_first_delta_runs_nothing() -> None:
    async def check() -> None:
        async with running() as engine:
            stream = engine.generate(EngineRequest(token_ids=[0, 5, 6], params=LONG))
            await stream.aclose()
            waiting = asyncio.create_task(anext(engine.generate(EngineRequest(token_ids=[0, 5, 6], params=LONG))))
            await asyncio.sleep(0)
            waiting.cancel()
            await _ends([waiting])
            await until(lambda: is_idle(engine))
            assert engine.stats.num_free_blocks == engine.stats.num_blocks

    run(check)


def test_a_deadline_ends_running_and_waiting_ones() -> None:
    async def check() -> None:
        async with running(max_num_seqs=1) as engine:
            tasks = [
                asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG, deadline_s=0.05)) for k in range(3)
            ]
            assert all(isinstance(end, DeadlineExceeded) for end in await _ends(tasks))
            assert is_idle(engine)

    run(check)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"ids": []}, InvalidInput),
        ({"ids": [0, 259]}, InvalidInput),
        ({"ids": [-1]}, InvalidInput),
        ({"ids": [0] * 505}, InvalidInput),
        ({"num_shared_tokens": 3}, InvalidInput),
        ({"num_shared_tokens": -1}, InvalidInput),
        ({"params": SamplingParams(logit_bias={259: 1.0})}, InvalidInput),
        ({"params": SamplingParams(logprobs=1, logprob_token_ids=(-1,))}, InvalidInput),
        ({"prompt": TaskPrompt.from_embeddings(torch.ones(2, 32), "f" * 64)}, BackboneMismatch),
        ({"prompt": TaskPrompt.from_embeddings(torch.ones(2, 31), BACKBONE.fingerprint)}, InvalidInput),
        ({"prompt": TaskPrompt.from_kv(torch.ones(2, 32), BACKBONE.fingerprint)}, InvalidInput),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_delta(
    arguments: dict[str, object], error: type[SoftswapError]
) -> None:
    async def check() -> None:
        async with running() as engine:
            with pytest.raises(error):
                await tokens_of(engine, **{"ids": [0, 5, 6], **arguments})  # type: ignore[arg-type]
            assert engine.stats.num_steps == 0
            assert engine.is_alive

    run(check)


def test_a_text_that_never_fits_into_the_cache_is_refused() -> None:
    async def check() -> None:
        async with running(num_blocks=5) as engine:
            with pytest.raises(InvalidInput, match="does not fit"):
                await tokens_of(engine, [0] * 20, params=SamplingParams(max_tokens=60))

    run(check)


def test_a_full_queue_refuses_the_next_and_serves_those_before() -> None:
    async def check() -> None:
        async with running(max_num_seqs=1, max_waiting_requests=4) as engine:
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3])) for k in range(40)]
            ends = await _ends(tasks)
            refused = [end for end in ends if isinstance(end, Overloaded)]
            assert all(isinstance(end, list | Overloaded) for end in ends)
            assert 0 < len(refused) < 40
            assert all(end.retry_after_s > 0 for end in refused)

    run(check)


def test_a_queue_full_of_tokens_refuses_too() -> None:
    async def check() -> None:
        async with running(max_num_seqs=1, max_waiting_tokens=60) as engine:
            first = engine.generate(EngineRequest(token_ids=[0, 5], params=LONG))
            await anext(first)
            tasks = [asyncio.create_task(tokens_of(engine, [0] * 25)) for _ in range(3)]
            await until(lambda: sum(task.done() for task in tasks) == 1)
            await first.aclose()
            ends = await _ends(tasks)
            assert sum(isinstance(end, Overloaded) for end in ends) == 1

    run(check)


# A prompt that is no good harms no other request


def test_values_that_are_not_finite_end_only_their_own_request() -> None:
    async def check() -> None:
        poison = poisoned_prompt()
        async with running() as engine:
            healthy = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], prompt=prompt_of(7))) for k in range(4)]
            for _ in range(3):
                with pytest.raises(NumericalError):
                    await tokens_of(engine, [0, 9, 9], prompt=poison)
            wanted = [naive.greedy(BACKBONE, prompt_of(7), [0, 5, k + 3], 8)[0] for k in range(4)]
            assert await asyncio.gather(*healthy) == wanted
            assert engine.is_alive

    run(check)


# The engine's thread


def test_a_failed_step_ends_the_running_ones_and_the_next_request_works(
    broken_runner: Callable[[int], None],
) -> None:
    async def check() -> None:
        async with running(max_num_seqs=2) as engine:
            stream = engine.generate(EngineRequest(token_ids=[0, 5, 6], prompt=prompt_of(7), params=LONG))
            await anext(stream)
            broken_runner(1)
            with pytest.raises(SoftswapError, match="a step of the engine failed"):
                async for _ in stream:
                    pass
            assert engine.is_alive
            wanted = naive.greedy(BACKBONE, prompt_of(7), [0, 5, 6], 8)[0]
            assert await tokens_of(engine, [0, 5, 6], prompt=prompt_of(7)) == wanted

    run(check)


def test_a_sequence_whose_deadline_passed_in_a_failed_step_still_ends(
    broken_runner: Callable[[int], None],
) -> None:
    async def check() -> None:
        engine = make_engine()
        broken_runner(1)
        late = asyncio.create_task(tokens_of(engine, [0, 5, 6], deadline_s=0.0))
        other = asyncio.create_task(tokens_of(engine, [0, 5, 7]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        engine.start()
        try:
            ends = await asyncio.wait_for(_ends([late, other]), timeout=10)
            assert isinstance(ends[0], DeadlineExceeded)
            assert isinstance(ends[1], SoftswapError)
        finally:
            engine.close()

    run(check)


def test_three_failed_steps_in_a_row_end_the_engine_and_leave_no_one_waiting(
    broken_runner: Callable[[int], None],
) -> None:
    async def check() -> None:
        async with running(max_num_seqs=1) as engine:
            broken_runner(3)
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3])) for k in range(5)]
            ends = await asyncio.wait_for(_ends(tasks), timeout=20)
            assert [type(end) for end in ends[2:]] == [EngineDead] * 3
            assert not engine.is_alive
            with pytest.raises(EngineDead):
                await tokens_of(engine, [0, 5, 6])

    run(check)


def test_a_request_that_comes_while_the_thread_dies_is_answered() -> None:
    async def check() -> None:
        engine = make_engine()

        def die() -> None:
            raise SystemExit

        engine.thread.call(die)  # before the thread has seen the request
        tasks = [asyncio.create_task(tokens_of(engine, [0, 5, 6]))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        engine.start()
        assert [type(end) for end in await asyncio.wait_for(_ends(tasks), timeout=10)] == [EngineDead]
        assert not engine.is_alive

    run(check)


def test_a_request_that_cannot_be_queued_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with running() as engine:
            with monkeypatch.context() as patch:
                patch.setattr(Engine, "submit", lambda *_, **__: 1 / 0)
                with pytest.raises(SoftswapError):
                    await tokens_of(engine, [0, 5, 6])
            assert len(await tokens_of(engine, [0, 5, 6])) == 8

    run(check)


def test_the_heartbeat_is_fresh_while_the_thread_lives() -> None:
    async def check() -> None:
        async with running() as engine:
            await tokens_of(engine, [0, 5, 6])
            await asyncio.sleep(0.7)
            assert engine.is_alive
            assert engine.heartbeat_age_s < 5
        assert not engine.is_alive

    run(check)


def test_counts_can_be_read_from_any_thread_while_the_engine_works() -> None:
    async def check() -> None:
        errors: list[BaseException] = []
        stop = threading.Event()

        def read() -> None:
            try:
                while not stop.is_set():
                    stats = engine.stats
                    assert 0 <= stats.num_free_blocks <= stats.num_blocks
            except BaseException as error:
                errors.append(error)

        async with running() as engine:
            reader = threading.Thread(target=read)
            reader.start()
            await asyncio.gather(*(tokens_of(engine, [0, 5, k + 3], prompt=prompt_of(1 + k % 5)) for k in range(40)))
            stop.set()
            reader.join()
        assert not errors

    run(check)


# Stopping


def test_draining_lets_those_end_that_can_and_refuses_new_ones() -> None:
    async def check() -> None:
        async with running() as engine:
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3])) for k in range(12)]
            await until(lambda: engine.stats.num_running > 0)
            draining = asyncio.create_task(engine.drain(30.0))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await tokens_of(engine, [0, 5, 6])
            assert all(len(tokens) == 8 for tokens in await asyncio.gather(*tasks))
            await draining

    run(check)


def test_draining_ends_what_does_not_fit_the_time() -> None:
    async def check() -> None:
        async with running(max_num_seqs=2) as engine:
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG)) for k in range(4)]
            await until(lambda: engine.stats.num_running == 2)
            started_s = time.monotonic()
            await engine.drain(0.05)
            assert time.monotonic() - started_s < 10
            assert all(isinstance(end, Draining) for end in await _ends(tasks))
            assert is_idle(engine)

    run(check)


def test_closing_tells_the_running_ones_that_the_server_stops() -> None:
    async def check() -> None:
        engine = make_engine(max_num_seqs=1)
        engine.start()
        tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG)) for k in range(3)]
        await until(lambda: engine.stats.num_running == 1)
        engine.close()
        assert all(isinstance(end, Draining) for end in await asyncio.wait_for(_ends(tasks), timeout=10))
        with pytest.raises(Draining):
            await tokens_of(engine, [0, 5, 6])
        engine.close()

    run(check)


# Scoring


async def score_all(
    engine: AsyncEngine,
    ids: list[int],
    continuations: list[tuple[int, ...]],
    *,
    deadline_s: float | None = None,
    **arguments: Any,
) -> Scoring:
    text = EngineRequest(token_ids=ids, **arguments)
    return await engine.score(text, engine.plan_scoring(continuations), deadline_s=deadline_s)


def naive_score(prompt: TaskPrompt | None, ids: list[int], continuation: tuple[int, ...]) -> float:
    logprobs = naive.text_logits(BACKBONE, prompt, [*ids, *continuation]).log_softmax(-1)
    return sum(float(logprobs[len(ids) - 1 + i, token_id]) for i, token_id in enumerate(continuation))


@pytest.mark.parametrize(
    "continuations",
    [
        [(7,), (8,), (9,)],
        [(7, 8, 9), (7, 8), (7,), (10, 11), (7, 8, 10)],
        [(5, 5, 5, 5)],
        [(7,), (7,)],
        [(20 + k % 12, 40 + k // 12, 60 + k) for k in range(150)],
    ],
    ids=["one token each", "beginnings of each other", "single", "twice the same", "150 labels"],
)
@pytest.mark.parametrize("num_virtual_tokens", [0, 20])
def test_scores_are_sums_of_the_plain_forwards_log_probabilities(
    continuations: list[tuple[int, ...]], num_virtual_tokens: int
) -> None:
    async def check() -> None:
        prompt = prompt_of(num_virtual_tokens) if num_virtual_tokens else None
        for ids in ([0], [0, *range(30, 55)]):
            async with running() as engine:
                scores = (await score_all(engine, ids, continuations, prompt=prompt)).log_likelihoods
                assert is_idle(engine)
            wanted = {each: naive_score(prompt, ids, each) for each in dict.fromkeys(continuations[:40])}
            for each, score in zip(continuations[:40], scores, strict=False):
                assert score == pytest.approx(wanted[each], abs=2e-3)
            assert len(scores) == len(continuations)

    run(check)


@pytest.mark.parametrize("labels", [[(5,), (6,)], [(5, 6), (5, 7), (8, 9, 10)]], ids=["one path", "several"])
def test_scoring_tells_what_it_found_computed(labels: list[tuple[int, ...]]) -> None:
    async def check() -> None:
        async with running(prefix_caching=False) as engine:
            first, second = [await score_all(engine, [0, 5, 6], labels, prompt=prompt_of(20)) for _ in range(2)]
            assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 20)
            assert first.log_likelihoods == second.log_likelihoods

    run(check)


@pytest.mark.parametrize(
    ("ids", "continuations"),
    [([0, 5], []), ([0, 5], [(5,), ()]), ([], [(5,)]), ([0, 5], [(5, 6), (259,)]), ([0, 5], [(5, 6), (-1,)])],
)
def test_what_cannot_be_scored_is_refused(ids: list[int], continuations: list[tuple[int, ...]]) -> None:
    async def check() -> None:
        async with running() as engine:
            with pytest.raises(InvalidInput):
                await score_all(engine, ids, continuations, prompt=None)
            assert engine.stats.num_steps == 0

    run(check)


def test_a_continuation_may_fill_the_last_position() -> None:
    async def check() -> None:
        async with running(max_model_len=16) as engine:
            ids, fitting = [0, *range(3, 13)], tuple(range(20, 26))
            (score,) = (await score_all(engine, ids, [fitting], prompt=None)).log_likelihoods
            assert score == pytest.approx(naive_score(None, ids, fitting), abs=2e-3)
            with pytest.raises(InvalidInput):
                await score_all(engine, ids, [(*fitting, 5)], prompt=None)

    run(check)


def test_scoring_raises_the_plain_error_and_leaves_nothing_behind() -> None:
    async def check() -> None:
        labels = [(7, k, 5) for k in range(20, 40)]
        async with running(max_waiting_requests=30) as engine:
            with pytest.raises(DeadlineExceeded):
                await score_all(engine, [0, 5, 6], labels, prompt=None, deadline_s=0.0)
            with pytest.raises(NumericalError):
                await score_all(engine, [0, 5, 6], labels, prompt=poisoned_prompt())
            await until(lambda: is_idle(engine))
            assert len((await score_all(engine, [0, 5, 6], labels, prompt=None)).log_likelihoods) == 20

    run(check)


def test_a_deadline_is_that_of_all_labels_and_not_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        labels = [(7, k, 5) for k in range(20, 40)]
        left_s: list[float] = []
        async with running(max_num_seqs=2) as engine:
            submit = Engine.submit

            def note(*arguments: Any, deadline_s: float, **options: Any) -> int:
                left_s.append(deadline_s)
                return submit(*arguments, deadline_s=deadline_s, **options)

            monkeypatch.setattr(Engine, "submit", note)
            await score_all(engine, [0, 5, 6], labels, prompt=None, deadline_s=100.0)
        assert len(left_s) == len(labels)
        assert left_s == sorted(left_s, reverse=True)
        assert left_s[-1] < left_s[0] < 100

    run(check)


def test_scoring_is_refused_as_a_whole_when_the_queue_cannot_take_half_a_batch_of_it() -> None:
    async def check() -> None:
        labels = [(k, 5, 6) for k in range(20, 26)]
        async with running(max_waiting_requests=4, max_num_seqs=4) as engine:
            tasks = [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG)) for k in range(4)]
            await until(lambda: engine.stats.num_running == 4)
            tasks += [asyncio.create_task(tokens_of(engine, [0, 5, k + 3], params=LONG)) for k in range(3)]
            await until(lambda: engine.stats.num_waiting == 3)
            with pytest.raises(Overloaded):
                await score_all(engine, [0, 5], labels, prompt=None)
            for task in tasks:
                task.cancel()
            await _ends(tasks)

    run(check)


def test_scoring_of_more_continuations_than_the_queue_holds_never_fills_it() -> None:
    async def check() -> None:
        labels = [(k, 5, 6) for k in range(20, 60)]
        async with running(max_waiting_requests=8, max_num_seqs=4) as engine:
            several = await asyncio.gather(*(score_all(engine, [0, 5], labels, prompt=None) for _ in range(4)))
        async with running() as engine:
            wanted = await score_all(engine, [0, 5], labels, prompt=None)
        for scoring in several:
            assert scoring.log_likelihoods == pytest.approx(wanted.log_likelihoods, abs=1e-4)

    run(check)


def test_what_was_begun_is_not_refused_half_way() -> None:
    async def check() -> None:
        labels = [(k, 5, 6) for k in range(20, 60)]
        async with running(max_waiting_requests=4, max_num_seqs=2) as engine:
            scoring = asyncio.create_task(score_all(engine, [0, 5], labels, prompt=None))
            await until(lambda: engine.stats.num_steps > 1)
            others = []
            while not scoring.done():
                others.append(asyncio.create_task(tokens_of(engine, [0, 5, 6])))
                await asyncio.sleep(0.0005)
            assert len((await scoring).log_likelihoods) == 40
            for task in others:
                task.cancel()
            assert any(isinstance(end, Overloaded) for end in await _ends(others))

    run(check)


def test_the_last_delta_says_why() -> None:
    async def check() -> None:
        async with running() as engine:
            first = (await tokens_of(engine, [0, 5, 6]))[0]
            params = SamplingParams(temperature=0, max_tokens=8, stop_token_ids=(first,))
            deltas: list[Delta] = [d async for d in engine.generate(EngineRequest(token_ids=[0, 5, 6], params=params))]
            assert [(d.finish_reason, d.stop_reason, d.text) for d in deltas] == [(FinishReason.STOP, first, "")]

    run(check)


async def _ends(tasks: Iterable[asyncio.Task[Any]]) -> list[object]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))
