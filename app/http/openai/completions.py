"""`POST /v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter

from app.answers.generating.generation import (
    Ask,
    Begun,
    Choice,
    ask_n,
    encode_for,
    finish_reason_of,
    put_together,
)
from app.answers.generating.label_answers import answer_all, choose_form, make_answer_params
from app.answers.readiness import Services
from app.answers.targets import Target, find_target
from app.engine.output.delta import Delta
from app.errors import InvalidInput
from app.http.fields import Usage
from app.http.openai.completions_schema import Completion, CompletionChoice, CompletionRequest, Logprobs
from app.http.openai.logprobs import LegacyLogprobs
from app.http.openai.text_chunk import TextChunk
from app.http.protection.deps import DeadlineDep, ServicesDep
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.event_stream import EventStream
from app.http.protection.guard import GuardedRoute
from app.sampling import SamplingParams

DEFAULT_MAX_TOKENS = 16
router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


@router.post(
    "/v1/completions",
    operation_id="createCompletion",
    summary="Go on with a text",
    response_model=Completion,
    response_model_exclude_unset=True,
    responses=STREAMED | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_completion(request: CompletionRequest, services: ServicesDep, deadline_s: DeadlineDep) -> Any:
    """OpenAI's completions: `text_completion` objects, or a stream of them."""
    target = choose_form(await find_target(services, request.model), free_text=request.free_text)
    if request.stream_options is not None and not request.stream:
        raise InvalidInput("stream_options needs stream to be true", param="stream_options")
    texts = [await _read_text(services, target, prompt) for prompt in _list_prompts(request)]
    writer = _Writer(services, target, request, texts)
    deltas = answer_all(services, target, writer.asks, deadline_s)
    if not request.stream:
        return writer.whole(await put_together(deltas, len(writer.asks)))
    return EventStream(await Begun.wait(writer.chunks(deltas)))


@dataclass(frozen=True)
class _Text:
    """One prompt of a request: its ids, and the text that `echo` repeats."""

    token_ids: tuple[int, ...]
    text: str


def _list_prompts(request: CompletionRequest) -> list[str | list[int]]:
    prompt = request.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return cast("list[str | list[int]]", prompt)


async def _read_text(services: Services, target: Target, prompt: str | list[int]) -> _Text:
    if isinstance(prompt, str):
        return _Text(await encode_for(services, target.prompt, prompt), prompt)
    services.engine.require_room(target.prompt, len(prompt))
    if max(prompt) >= services.backbone.vocab_size:
        raise InvalidInput("prompt holds a token id outside the vocabulary", param="prompt")
    return _Text(tuple(prompt), services.backbone.tokenizer.decode(prompt, skip_special_tokens=True))


class _Writer:
    """Turns choices, whole or in deltas, into OpenAI's objects."""

    def __init__(self, services: Services, target: Target, request: CompletionRequest, texts: Sequence[_Text]) -> None:
        self._services = services
        self._target = target
        self._request = request
        self._texts = texts
        self._n = request.n or 1
        self._begun: set[int] = set()
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": target.model_id,
            "system_fingerprint": services.system_fingerprint,
        }
        self.asks: list[Ask] = [ask for text in texts for ask in ask_n(text.token_ids, self._params(text), self._n)]
        self._formats = [LegacyLogprobs(services.backbone.tokenizer) for _ in self.asks]

    def _params(self, text: _Text) -> SamplingParams:
        given = self._request.given_sampling()
        if self._request.logprobs is not None:
            given["logprobs"] = self._request.logprobs
            if self._request.echo:
                given["prompt_logprobs"] = self._request.logprobs
        return make_answer_params(
            self._services,
            self._target,
            given,
            num_tokens=len(text.token_ids),
            default_max_tokens=DEFAULT_MAX_TOKENS,
        )

    def whole(self, choices: Sequence[Choice]) -> Completion:
        """The answer in one piece."""
        usage = self._usage([len(choice.token_ids) for choice in choices], [c.num_cached_tokens for c in choices])
        return Completion(**self._head, choices=[self._write(*item) for item in enumerate(choices)], usage=usage)

    async def chunks(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> AsyncGenerator[Completion | bytes, None]:
        """The answer piece by piece, as JSON where a piece is nothing but text."""
        options = self._request.stream_options
        is_usage_wanted = options is not None and bool(options.include_usage)
        no_usage: dict[str, Any] = {"usage": None} if is_usage_wanted else {}
        num_generated, num_cached = [0] * len(self.asks), [0] * len(self.asks)
        index_to_plain: dict[int, TextChunk] = {}
        async with aclosing(deltas):
            async for index, delta in deltas:
                num_generated[index] += len(delta.token_ids)
                num_cached[index] = max(num_cached[index], delta.num_cached_tokens)
                if index in index_to_plain and delta.finish_reason is None:
                    yield index_to_plain[index].with_text(delta.text)
                else:
                    yield Completion(**self._head, choices=[self._write(index, delta)], **no_usage)
                if index not in index_to_plain and self._request.logprobs is None:
                    index_to_plain[index] = self._plain_chunk(index, no_usage)
        if is_usage_wanted:
            yield Completion(**self._head, choices=[], usage=self._usage(num_generated, num_cached))

    def _plain_chunk(self, index: int, no_usage: dict[str, Any]) -> TextChunk:
        """What a choice's further chunks are like."""
        return TextChunk(
            lambda text: Completion(**self._head, choices=[self._write(index, Delta(text=text))], **no_usage)
        )

    def _write(self, index: int, part: Choice | Delta) -> CompletionChoice:
        echoed = self._texts[index // self._n] if self._request.echo and index not in self._begun else None
        self._begun.add(index)
        reason = part.finish_reason
        return CompletionChoice(
            index=index,
            text=part.text if echoed is None else echoed.text + part.text,
            logprobs=None if self._request.logprobs is None else self._write_logprobs(index, part, echoed),
            finish_reason=None if reason is None else finish_reason_of(reason),
        )

    def _write_logprobs(self, index: int, part: Choice | Delta, echoed: _Text | None) -> Logprobs:
        token_ids, entries = list(part.token_ids), list(part.logprobs or ())
        if echoed is not None:
            token_ids = [*echoed.token_ids, *token_ids]
            entries = [*(part.prompt_logprobs or ()), *entries]
        return self._formats[index].format(token_ids, entries)

    def _usage(self, num_generated: Sequence[int], num_cached: Sequence[int]) -> Usage:
        sizes = [len(text.token_ids) + self._target.num_virtual_tokens for text in self._texts]
        reused = [min(size, cached) for size, cached in zip(sizes, num_cached[:: self._n], strict=True)]
        return Usage.of(num_prompt=sum(sizes), num_completion=sum(num_generated), num_cached=sum(reused))
