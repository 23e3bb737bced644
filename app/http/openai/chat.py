"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from jinja2.exceptions import TemplateError

from app.answers.generating.generation import (
    Begun,
    Choice,
    ask_n,
    encode_for,
    finish_reason_of,
    put_together,
)
from app.answers.generating.label_answers import answer_all, choose_form, make_answer_params
from app.answers.naming import naming_text
from app.answers.readiness import Services
from app.answers.targets import Target, find_target
from app.engine.output.delta import Delta
from app.errors import InvalidInput
from app.http.fields import Usage
from app.http.openai.chat_schema import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    Message,
)
from app.http.openai.logprobs import chat_logprobs
from app.http.openai.text_chunk import TextChunk
from app.http.protection.deps import DeadlineDep, ServicesDep
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.event_stream import EventStream
from app.http.protection.guard import GuardedRoute

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    operation_id="createChatCompletion",
    summary="Go on with a conversation",
    response_model=ChatCompletion,
    response_model_exclude_unset=True,
    responses=STREAMED | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_chat_completion(request: ChatRequest, services: ServicesDep, deadline_s: DeadlineDep) -> Any:
    """OpenAI's chat completions: `chat.completion` objects, or a stream of `chat.completion.chunk`."""
    target = choose_form(await find_target(services, request.model), free_text=request.free_text)
    _check_pairs(request)
    with naming_text("messages"):
        return await _answer(services, target, request, deadline_s)


async def _answer(services: Services, target: Target, request: ChatRequest, deadline_s: float) -> Any:
    token_ids = await _render(services, target, request.messages)
    given = request.given_sampling()
    params = make_answer_params(services, target, given, num_tokens=len(token_ids), default_max_tokens=None)
    asks = ask_n(token_ids, params, request.n or 1)
    writer = _Writer(services, target, request, len(token_ids))
    deltas = answer_all(services, target, asks, deadline_s)
    if not request.stream:
        return writer.whole(await put_together(deltas, len(asks)))
    return EventStream(await Begun.wait(writer.chunks(deltas)))


def _check_pairs(request: ChatRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidInput("stream_options needs stream to be true", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidInput("top_logprobs needs logprobs to be true", param="top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidInput("give max_completion_tokens or max_tokens, not both", param="max_tokens")


async def _render(services: Services, target: Target, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of the conversation: as the task's runs have them if it has a template or labels, else by the tokenizer's."""
    if target.template is not None or target.labels:
        if len(messages) != 1 or messages[0].role != "user":
            own = "a template of its own" if target.template else "labels"
            message = f"{target.flow} has {own} and takes exactly one user message"
            raise InvalidInput(message, param="messages")
        return await encode_for(services, target.prompt, target.input_template.render(messages[0].text))
    if not services.backbone.has_chat_template:
        message = f"{services.backbone.name} has no chat template; use /v1/completions, or a task that has a template"
        raise InvalidInput(message, param="model")
    token_ids = await asyncio.to_thread(_apply_chat_template, services, messages)
    services.engine.require_room(target.prompt, len(token_ids))
    return token_ids


def _apply_chat_template(services: Services, messages: Sequence[Message]) -> tuple[int, ...]:
    turns = [{"role": _role(message), "content": message.text} for message in messages]
    tokenizer = services.backbone.tokenizer
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        message = "the model's chat template refuses this sequence of roles"
        raise InvalidInput(message, param="messages") from None
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _role(message: Message) -> str:
    """Chat templates of open models know OpenAI's "developer" as "system"."""
    return "system" if message.role == "developer" else message.role


class _Writer:
    """Turns choices, whole or in deltas, into OpenAI's objects."""

    def __init__(self, services: Services, target: Target, request: ChatRequest, num_tokens: int) -> None:
        self._tokenizer = services.backbone.tokenizer
        self._request = request
        self._num_prompt = num_tokens + target.num_virtual_tokens
        self._has_template = target.template is not None
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": target.model_id,
            "system_fingerprint": services.system_fingerprint,
        }

    def whole(self, choices: Sequence[Choice]) -> ChatCompletion:
        """The answer in one piece."""
        usage = self._usage([len(choice.token_ids) for choice in choices], choices[0].num_cached_tokens)
        written = [self._write(index, choice) for index, choice in enumerate(choices)]
        return ChatCompletion(object="chat.completion", **self._head, choices=written, usage=usage)

    async def chunks(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> AsyncGenerator[ChatChunk | bytes, None]:
        """The answer piece by piece: the role first, then text, then the reason it ended.

        As JSON where a piece is nothing but text.
        """
        options = self._request.stream_options
        is_usage_wanted = options is not None and bool(options.include_usage)
        no_usage: dict[str, Any] = {"usage": None} if is_usage_wanted else {}
        num_generated = [0] * (self._request.n or 1)
        num_cached = 0
        index_to_plain: dict[int, TextChunk] = {}
        spoken: set[int] = set()
        async with aclosing(deltas):
            async for index, delta in deltas:
                if index not in index_to_plain:
                    index_to_plain[index] = self._plain_chunk(index, no_usage)
                    yield self._chunk(index, ChatDelta(role="assistant", content=""), **no_usage)
                num_generated[index] += len(delta.token_ids)
                num_cached = max(num_cached, delta.num_cached_tokens)
                content = delta.text if index in spoken else self._without_gap(delta.text)
                spoken |= {index} if content else set()
                is_plain = delta.finish_reason is None and not self._request.logprobs
                plain = index_to_plain[index] if is_plain else None
                yield plain.with_text(content) if plain else self._delta_chunk(index, delta, content, **no_usage)
        if is_usage_wanted:
            usage = self._usage(num_generated, num_cached)
            yield ChatChunk(object="chat.completion.chunk", **self._head, choices=[], usage=usage)

    def _without_gap(self, text: str) -> str:
        """The blank between a template's text and its answer is no part of the answer."""
        return text.lstrip() if self._has_template else text

    def _plain_chunk(self, index: int, no_usage: dict[str, Any]) -> TextChunk:
        """What the chunks with a choice's text are like, but for the last."""
        return TextChunk(lambda text: self._delta_chunk(index, Delta(), text, **no_usage))

    def _delta_chunk(self, index: int, delta: Delta, content: str, **no_usage: Any) -> ChatChunk:
        is_empty = not content and delta.finish_reason is not None
        return self._chunk(index, ChatDelta() if is_empty else ChatDelta(content=content), delta, **no_usage)

    def _chunk(self, index: int, content: ChatDelta, delta: Delta | None = None, **no_usage: Any) -> ChatChunk:
        reason = delta.finish_reason if delta else None
        choice = ChatChunkChoice(
            index=index,
            delta=content,
            logprobs=self._logprobs(delta) if delta else None,
            finish_reason=None if reason is None else finish_reason_of(reason),
        )
        return ChatChunk(object="chat.completion.chunk", **self._head, choices=[choice], **no_usage)

    def _write(self, index: int, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(role="assistant", content=self._without_gap(choice.text), refusal=None),
            logprobs=self._logprobs(choice),
            finish_reason="length" if choice.finish_reason is None else finish_reason_of(choice.finish_reason),
        )

    def _logprobs(self, part: Choice | Delta) -> ChatLogprobs | None:
        return chat_logprobs(self._tokenizer, part.logprobs or ()) if self._request.logprobs else None

    def _usage(self, num_generated: Sequence[int], num_cached: int) -> Usage:
        return Usage.of(
            num_prompt=self._num_prompt,
            num_completion=sum(num_generated),
            num_cached=min(self._num_prompt, num_cached),
        )
