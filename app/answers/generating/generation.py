"""TextGenerator: from texts and sampling parameters to deltas and finished choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.answers.call import Call
from app.answers.targets import Target
from app.engine.admission import EngineRequest
from app.engine.async_engine import AsyncEngine
from app.engine.output.output import Delta
from app.engine.sequence import FinishReason
from app.model.sampler import TokenLogprob
from app.sampling import SamplingParams


@dataclass(frozen=True)
class Ask:
    """One choice to be generated."""

    token_ids: tuple[int, ...]
    params: SamplingParams
    num_shared_tokens: int = 0


@dataclass
class Choice:
    """One generated choice, as far as it has come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.prompt_logprobs += delta.prompt_logprobs or ()
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)


def ask_n(token_ids: tuple[int, ...], params: SamplingParams, n: int) -> list[Ask]:
    """`n` choices over one text, computed once; each has its own seed, or a given seed would make them all equal."""
    shared = len(token_ids) - 1 if n > 1 and params.prompt_logprobs is None else 0
    seeds = [None if params.seed is None else _wrap_seed(params.seed + index) for index in range(n)]
    return [Ask(token_ids, replace(params, seed=seed), shared) for seed in seeds]


def _wrap_seed(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


class TextGenerator:
    """Generates text through the engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def make_params(
        self, target: Target, given: dict[str, Any], *, num_tokens: int, default_max_tokens: int | None
    ) -> SamplingParams:
        """The request's own values over the version's defaults. Raises InvalidInput.

        Args:
            given: what the request says, by the names of SamplingParams.
            num_tokens: length of the text, so that a default max_tokens fits the context.
            default_max_tokens: if neither request nor version says anything; None takes all the context that is left.
        """
        merged = {**target.sampling, **given}
        for name in ("stop", "stop_token_ids"):
            value = merged.get(name, ())
            merged[name] = (value,) if isinstance(value, str) else tuple(value)
        if "max_tokens" not in given:
            room = self._engine.max_positions - target.num_virtual_tokens - num_tokens
            wanted = merged.get("max_tokens", default_max_tokens)
            merged["max_tokens"] = max(1, room if wanted is None else min(room, wanted))
        return SamplingParams(**merged)

    async def collect(self, target: Target, asks: Sequence[Ask], call: Call) -> list[Choice]:
        """All choices, finished. The first error ends the others."""
        return await put_together(self.stream(target, asks, call), len(asks))

    async def stream(self, target: Target, asks: Sequence[Ask], call: Call) -> AsyncGenerator[tuple[int, Delta], None]:
        """Deltas of all choices as they come, each with its choice's index. Closing it ends all of them."""
        if len(asks) == 1:
            async with aclosing(self._begin(target, asks[0], call)) as deltas:
                async for delta in deltas:
                    yield 0, delta
            return
        arrived: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()
        slots = asyncio.Semaphore(self._engine.num_at_once())

        async def pump(index: int, ask: Ask) -> None:
            async with slots, aclosing(self._begin(target, ask, call)) as deltas:
                async for delta in deltas:
                    arrived.put_nowait((index, delta))

        pumps = [asyncio.ensure_future(pump(index, ask)) for index, ask in enumerate(asks)]
        for task in pumps:
            task.add_done_callback(arrived.put_nowait)
        try:
            num_open = len(pumps)
            while num_open:
                item = await arrived.get()
                if isinstance(item, tuple):
                    yield item
                else:
                    num_open -= 1
                    item.result()
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _begin(self, target: Target, ask: Ask, call: Call) -> AsyncGenerator[Delta, None]:
        request = EngineRequest(
            token_ids=ask.token_ids,
            prompt=target.prompt,
            params=ask.params,
            num_shared_tokens=ask.num_shared_tokens,
            cache_salt=call.cache_salt,
            flow=target.flow,
        )
        return self._engine.generate(request, deadline_s=call.left_s)


async def put_together(deltas: AsyncGenerator[tuple[int, Delta], None], num_choices: int) -> list[Choice]:
    """Choices from their deltas, each with its choice's index."""
    choices = [Choice() for _ in range(num_choices)]
    async with aclosing(deltas):
        async for index, delta in deltas:
            choices[index].add(delta)
    return choices


def finish_reason_of(reason: FinishReason | None) -> Literal["stop", "length"]:
    """The reason in OpenAI's words, of a choice that has ended; every other end of a sequence is an error by now."""
    return "stop" if reason is FinishReason.STOP else "length"
