"""Generation: from a request's texts and parameters to deltas and finished choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from app.answers.batch import max_at_once
from app.engine.sequence import FinishReason
from app.errors import InvalidInput
from app.http.protection.auth import cache_salt
from app.model.layout import continue_prompt, encode_text
from app.sampling import SamplingParams

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.answers.targets import Target
    from app.engine.output.delta import Delta
    from app.model.sampler import TokenLogprob
    from app.task_prompt import TaskPrompt

Item = TypeVar("Item")
MAX_CHARS_AT_ONCE = 4096
"""A longer text is encoded in a thread, so that it keeps no other request waiting."""


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


async def encode_for(services: Services, prompt: TaskPrompt | None, text: str) -> tuple[int, ...]:
    """Ids of a text behind a prompt: [prompt][BOS][text], but a written prompt begins with the BOS itself.

    Raises:
        InvalidInput: there is no room for so many.
    """
    tokenizer = services.backbone.tokenizer
    if len(text) > MAX_CHARS_AT_ONCE:
        token_ids = await asyncio.to_thread(encode_text, tokenizer, text)
    else:
        token_ids = encode_text(tokenizer, text)
    token_ids = continue_prompt(tokenizer, prompt, token_ids)
    services.engine.require_room(prompt, len(token_ids))
    return tuple(token_ids)


def make_params(
    services: Services, target: Target, given: dict[str, Any], *, num_tokens: int, default_max_tokens: int | None
) -> SamplingParams:
    """The request's own values over the version's defaults.

    Args:
        given: what the request says, by the names of SamplingParams.
        num_tokens: length of the text, to keep a silent max_tokens within the context.
        default_max_tokens: where both are silent; None takes all the context that is left.
    """
    merged = {**target.sampling, **given}
    for name in ("stop", "stop_token_ids"):
        value = merged.get(name, ())
        merged[name] = (value,) if isinstance(value, str) else tuple(value)
    if any(not 0 <= token_id < services.backbone.vocab_size for token_id in merged.get("logit_bias", ())):
        raise InvalidInput("logit_bias names a token id outside the vocabulary", param="logit_bias")
    if "max_tokens" not in given:
        room = services.engine.max_positions - target.num_virtual_tokens - num_tokens
        wanted = merged.get("max_tokens", default_max_tokens)
        merged["max_tokens"] = max(1, room if wanted is None else min(room, wanted))
    return SamplingParams(**merged)


def ask_n(token_ids: tuple[int, ...], params: SamplingParams, n: int) -> list[Ask]:
    """`n` choices over one text, computed once; each has a seed of its own, so that a seed does not make them equal."""
    shared = len(token_ids) - 1 if n > 1 and params.prompt_logprobs is None else 0
    seeds = [None if params.seed is None else _wrap_seed(params.seed + index) for index in range(n)]
    return [Ask(token_ids, replace(params, seed=seed), shared) for seed in seeds]


def _wrap_seed(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


async def generate_all(
    services: Services, target: Target, asks: Sequence[Ask], deadline_s: float
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of all choices as they come, each with its choice's index. Closing it ends all of them."""
    services.check_accepting()
    ends_at = time.monotonic() + deadline_s

    def begin(ask: Ask) -> AsyncGenerator[Delta, None]:
        return services.engine.generate(
            ask.token_ids,
            prompt=target.prompt,
            params=ask.params,
            cache_salt=cache_salt.get(),
            flow=target.flow,
            deadline_s=ends_at - time.monotonic(),
            num_shared_tokens=ask.num_shared_tokens,
        )

    streams = [partial(begin, ask) for ask in asks]
    async with aclosing(_interleave(streams, at_once=max_at_once(services.engine))) as deltas:
        async for index, delta in deltas:
            yield index, delta


async def collect(services: Services, target: Target, asks: Sequence[Ask], deadline_s: float) -> list[Choice]:
    """All choices, finished. The first error ends the others."""
    return await put_together(generate_all(services, target, asks, deadline_s), len(asks))


async def put_together(deltas: AsyncGenerator[tuple[int, Delta], None], num_choices: int) -> list[Choice]:
    """Choices from their deltas, each with its choice's index."""
    choices = [Choice() for _ in range(num_choices)]
    async with aclosing(deltas):
        async for index, delta in deltas:
            choices[index].add(delta)
    return choices


class Begun(Generic[Item]):
    """A generator whose first item is there already, so that an error before it could still be a status.

    Unlike a generator it can be closed before it is used, and then ends the work behind it all the same.
    """

    def __init__(self, first: Item | None, rest: AsyncGenerator[Item, None]) -> None:
        self._first = first
        self._rest = rest

    @classmethod
    async def wait(cls, items: AsyncGenerator[Item, None]) -> Begun[Item]:
        try:
            return cls(await anext(items, None), items)
        except BaseException:
            await items.aclose()
            raise

    def __aiter__(self) -> Begun[Item]:
        return self

    async def __anext__(self) -> Item:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


async def _interleave(
    streams: Sequence[Callable[[], AsyncGenerator[Delta, None]]], *, at_once: int
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Args: streams: what begins each; so many run at a time."""
    if len(streams) == 1:
        async with aclosing(streams[0]()) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    arrived: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()
    slots = asyncio.Semaphore(at_once)

    async def pump(index: int, begin: Callable[[], AsyncGenerator[Delta, None]]) -> None:
        async with slots, aclosing(begin()) as stream:
            async for delta in stream:
                arrived.put_nowait((index, delta))

    pumps = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
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


def finish_reason_of(reason: FinishReason) -> Literal["stop", "length"]:
    """The reason in OpenAI's words; every other end of a sequence is an error by now."""
    return "stop" if reason is FinishReason.STOP else "length"
