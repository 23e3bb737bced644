"""10,000 random operations on an engine that is always short of blocks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.output.output import Delta, PathScores
from app.engine.sequence import FinishReason
from app.errors import Overloaded
from app.model.backbone import Backbone
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics
from tests.engine.test_engine import read
from tests.support import naive
from tests.support.models import COMMON, byte_tokenizer

NUM_OPERATIONS = 2_500
TEXTS = [[0, *(3 + (7 * i * i + 11 * k) % 250 for i in range(length))] for k, length in enumerate((0, 3, 9, 17, 30))]
PROMPT_SIZES = [
    (1, "embeddings"),
    (7, "embeddings"),
    (21, "embeddings"),
    (8, "kv"),
    (13, "kv"),
    (5, "text"),
    (6, "poison"),
]
POISON = len(PROMPT_SIZES) - 1
MAX_TOKENS = 24


def make_backbone() -> Backbone:
    config = AutoConfig.for_model("llama", **{**COMMON, "num_hidden_layers": 1, "hidden_size": 16})
    config.initializer_range = 0.3
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Backbone.from_model(model, byte_tokenizer(), name="one-layer")


def make_prompt(backbone: Backbone, index: int) -> TaskPrompt:
    length, kind = PROMPT_SIZES[index]
    generator = torch.Generator().manual_seed(index)
    if kind == "text":
        return TaskPrompt.from_text("text", list(range(40, 40 + length)), backbone.fingerprint)
    if kind == "poison":
        # finite keys whose products with any query are not
        return TaskPrompt.from_kv(torch.full((length, backbone.kv_row_size), 3e38), backbone.fingerprint)
    if kind == "kv":
        return TaskPrompt.from_kv(torch.randn(length, backbone.kv_row_size, generator=generator), backbone.fingerprint)
    return TaskPrompt.from_embeddings(
        torch.randn(length, backbone.hidden_size, generator=generator), backbone.fingerprint
    )


@dataclass
class Clock:
    """Time passes only when the test says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Wanted:
    """What was asked of a sequence."""

    prompt: int | None
    text: int
    max_tokens: int
    targets: dict[int, tuple[int, ...]] | None = None
    found: list[Delta | PathScores] = field(default_factory=list)


class Driver:
    """Does random things to an engine and keeps its own list of what must come of them."""

    def __init__(
        self, backbone: Backbone, seed: int, expected: dict[tuple[int | None, int], list[int]], folder: Path
    ) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.backbone = backbone
        self.prompts = [make_prompt(backbone, i) for i in range(len(PROMPT_SIZES))]
        config = EngineConfig(
            max_model_len=96,
            max_num_seqs=self.random.choice([3, 5]),
            max_num_batched_tokens=self.random.choice([5, 24]),
            block_size=4,
            num_blocks=1 + 21,
            max_waiting_requests=12,
            max_waiting_tokens=300,
            prefix_store=folder if seed % 3 == 1 else None,
            prefix_store_bytes=6 * 2**10,
            decode_graphs=seed % 2 == 1,
            async_scheduling=seed // 2 % 2 == 1,
            prompt_lookup=3 * (seed // 2 % 2 == 0),
        )
        self.metrics = Metrics()
        self.engine = Engine(backbone, config, self.metrics, clock=self.clock)
        self.open: dict[int, Wanted] = {}
        self.num_text_hits = self.num_warmed = 0
        self.reasons: Counter[str] = Counter()
        self.expected = expected

    def run(self, num_operations: int) -> None:
        operations = [self.add, self.score, self.step, self.abort, self.wait, self.fail, self.warm]
        for operation in self.random.choices(operations, weights=[40, 10, 60, 10, 10, 1, 10], k=num_operations):
            operation()
            self.engine.scheduler.audit()
        for _ in range(2000):
            if not self.engine.has_unfinished:
                break
            self.step()
            self.engine.scheduler.audit()
        self.check_nothing_is_left()

    def warm(self) -> None:
        """Harder than in a server, which warms only what it has nothing else to do for."""
        is_stopped = self.random.random() < 0.1
        self.num_warmed += self.engine.warmer.warm(self.random.choice(self.prompts), lambda: is_stopped)

    def add(self) -> None:
        wanted = Wanted(self._any_prompt(), self.random.randrange(len(TEXTS)), self.random.choice([0, 3, MAX_TOKENS]))
        text = TEXTS[wanted.text]
        params = SamplingParams(
            max_tokens=wanted.max_tokens,
            temperature=0,
            ignore_eos=True,
            prompt_logprobs=self.random.choice([None, None, 1]),
        )
        self._submit(
            wanted,
            lambda: self.engine.add(
                text,
                prompt=self._prompt(wanted),
                params=params,
                flow=self.random.choice("abc"),
                deadline_s=self.random.choice([None, None, 9.0]),
                num_shared_tokens=self.random.choice([0, self.random.randrange(len(text))]),
                cache_salt=self.random.choice(["", "", "other"]),
            ),
        )

    def score(self) -> None:
        text = TEXTS[index := self.random.randrange(1, len(TEXTS))]
        shared = self.random.randrange(len(text))
        targets = {len(text) - 1: (5, 6), shared: (7,)}
        wanted = Wanted(self._any_prompt(), index, 0, targets)
        self._submit(
            wanted,
            lambda: self.engine.add(text, score_targets=targets, prompt=self._prompt(wanted), num_shared_tokens=shared),
        )

    def step(self) -> None:
        self.clock.now_s += 0.1
        self.take(naive.step(self.engine))

    def fail(self) -> None:
        """A step in which the device gives up."""
        whole = self.engine.model_runner.run
        self.engine.model_runner.run = self._raise  # type: ignore[method-assign]
        try:
            with pytest.raises(MemoryError):
                self.engine.step()
        finally:
            self.engine.model_runner.run = whole  # type: ignore[method-assign]
        self.take([*self.engine.reset(), *self.engine.take_scores()])
        assert self.engine.stats.num_running == 0

    def take(self, deltas: list[tuple[int, Delta | PathScores]]) -> None:
        for sequence_id, delta in deltas:
            wanted = self.open[sequence_id]
            wanted.found.append(delta)
            if delta.finish_reason is not None:
                del self.open[sequence_id]
                self.reasons[delta.finish_reason] += 1
                num_virtual = 0 if wanted.prompt is None else self.prompts[wanted.prompt].num_virtual_tokens
                self.num_text_hits += delta.num_cached_tokens > num_virtual
                self.check(wanted, delta)

    def abort(self) -> None:
        if self.open:
            sequence_id = self.random.choice(list(self.open))
            self.engine.abort(sequence_id)
            self.engine.abort(sequence_id)  # a second time does nothing
            del self.open[sequence_id]
            self.reasons[FinishReason.ABORT] += 1

    def wait(self) -> None:
        self.clock.now_s += self.random.choice([0.5, 3.0])

    def check(self, wanted: Wanted, last: Delta | PathScores) -> None:
        """What a sequence gave is what the naive loop gives, as far as it came."""
        tokens = [] if isinstance(last, PathScores) else naive.tokens(wanted.found)
        if wanted.prompt == POISON:
            assert tokens == []
            assert last.finish_reason is not FinishReason.LENGTH or wanted.max_tokens == 0
            return
        assert tokens == self._expected(wanted)[: len(tokens)]
        if last.finish_reason is FinishReason.LENGTH:
            assert len(tokens) == wanted.max_tokens
        if wanted.targets is not None and last.finish_reason is FinishReason.LENGTH:
            assert isinstance(last, PathScores)
            logprobs = naive.text_logits(self.backbone, self._prompt(wanted), TEXTS[wanted.text]).log_softmax(-1)
            for (index, token_id), value in last.logprobs.items():
                assert value == pytest.approx(float(logprobs[index, token_id]), abs=1e-4)

    def check_nothing_is_left(self) -> None:
        assert not self.open
        assert self.engine.stats.num_running == self.engine.stats.num_waiting == 0
        assert self.engine.scheduler.waiting.num_tokens == 0
        assert all(prefix.num_users == 0 for prefix in self.engine.scheduler.prefix_cache.prefixes)
        while self.engine.scheduler.prefix_cache.evict():
            pass
        assert self.engine.stats.num_free_blocks == self.engine.stats.num_blocks

    def _submit(self, wanted: Wanted, add: object) -> None:
        try:
            sequence_id = add()  # type: ignore[operator]
        except Overloaded:
            self.reasons["refused"] += 1
        else:
            self.open[sequence_id] = wanted

    def _any_prompt(self) -> int | None:
        index = self.random.randint(-1, len(self.prompts) - 1)
        return None if index < 0 else index

    def _prompt(self, wanted: Wanted) -> TaskPrompt | None:
        return None if wanted.prompt is None else self.prompts[wanted.prompt]

    @staticmethod
    def _raise(*arguments: object) -> NoReturn:
        raise MemoryError

    def _expected(self, wanted: Wanted) -> list[int]:
        key = wanted.prompt, wanted.text
        if key not in self.expected:
            self.expected[key] = naive.greedy(self.backbone, self._prompt(wanted), TEXTS[wanted.text], MAX_TOKENS)[0]
        return self.expected[key]


def test_10000_random_operations_lose_no_block_and_change_no_token(tmp_path: Path) -> None:
    backbone = make_backbone()
    expected: dict[tuple[int | None, int], list[int]] = {}
    reasons: Counter[str] = Counter()
    num_preemptions = num_text_hits = num_warmed = num_loads = num_guessed = num_right = 0
    for seed in range(10_000 // NUM_OPERATIONS):
        driver = Driver(backbone, seed, expected, tmp_path)
        driver.run(NUM_OPERATIONS)
        num_loads += read(driver.metrics, "prefix_store_loads_total")
        num_guessed += read(driver.metrics, "spec_decode_num_draft_tokens_total")
        num_right += read(driver.metrics, "spec_decode_num_accepted_tokens_total")
        reasons += driver.reasons
        num_preemptions += driver.engine.stats.num_preemptions
        num_text_hits += driver.num_text_hits
        num_warmed += driver.num_warmed
    # the run says something only if all of it happened
    assert min(reasons[reason] for reason in ("length", "abort", "deadline", "error", "refused")) > 50
    assert num_preemptions > 30
    assert num_text_hits > 25
    assert num_warmed > 50
    assert num_loads > 50
    assert num_guessed > num_right > 50
    assert len({tuple(tokens) for tokens in expected.values()}) > len(expected) // 2
