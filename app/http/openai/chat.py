"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from transformers import PreTrainedTokenizerFast

from app.answers.generating.completer import choose_form
from app.answers.generating.generation import Choice, ask_n, finish_reason_of
from app.answers.targets import Target
from app.engine.output.detokenizer import token_bytes
from app.engine.output.output import Delta
from app.errors import InvalidInput, naming_text
from app.http.dependencies import BackboneDep, CompleterDep, EngineCallDep, FinderDep
from app.http.fields import UsageObject
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
    TokenLogprobs,
    TopLogprob,
)
from app.http.openai.choice_writer import LOWEST, ChoiceWriter
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.guard import GuardedRoute
from app.model.backbone import Backbone
from app.model.sampler import TokenLogprob

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    summary="Continue a conversation",
    response_model=ChatCompletion,
    responses=STREAMED | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_chat_completion(
    request: ChatRequest, backbone: BackboneDep, finder: FinderDep, completer: CompleterDep, call: EngineCallDep
) -> Response:
    """OpenAI's chat completions: `chat.completion` objects, or a stream of `chat.completion.chunk`."""
    target = choose_form(await finder.find_one(request.model), free_text=request.free_text)
    _check_pairs(request)
    with naming_text("messages"):
        token_ids = await _render(backbone, target, request.messages)
        given = request.given_sampling()
        params = completer.make_params(target, given, num_tokens=len(token_ids), default_max_tokens=None)
        deltas = completer.stream(target, ask_n(token_ids, params, request.n or 1), call)
        writer = _ChatWriter(backbone, target, request, len(token_ids))
        return await writer.answer(deltas)


def _check_pairs(request: ChatRequest) -> None:
    request.check_stream_options()
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidInput("top_logprobs needs logprobs to be true", param="top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidInput("give max_completion_tokens or max_tokens, not both", param="max_tokens")


async def _render(backbone: Backbone, target: Target, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of the conversation: as the task's runs have them if it has a template or labels, else by the tokenizer's.

    A system message is the beginning of a task's input, on lines of its own, as in examples to tune with.
    """
    if target.template is not None or target.labels:
        if [_role(message) for message in messages] not in (["user"], ["system", "user"]):
            own = "a template of its own" if target.template else "labels"
            message = f"{target.flow} has {own} and takes one user message, after at most one system message"
            raise InvalidInput(message, param="messages")
        return await target.encode(backbone.tokenizer, "\n".join(message.text for message in messages))
    template = backbone.chat_template
    if template.problem is not None:
        message = f"{backbone.name} {template.problem}; use /v1/completions, or a task that has a template"
        raise InvalidInput(message, param="model")
    turns = [{"role": _role(message), "content": message.text} for message in messages]
    return await asyncio.to_thread(template.encode, turns)


def _role(message: Message) -> str:
    """Chat templates of open models know OpenAI's "developer" as "system"."""
    return "system" if message.role == "developer" else message.role


class _ChatWriter(ChoiceWriter):
    """In the words of `/v1/chat/completions`. A stream gives the role first, then text, then the reason it ended."""

    def __init__(self, backbone: Backbone, target: Target, request: ChatRequest, num_tokens: int) -> None:
        super().__init__(
            backbone,
            target,
            request,
            id_prefix="chatcmpl",
            nums_tokens=[num_tokens],
            has_logprobs=bool(request.logprobs),
        )
        self._tokenizer = backbone.tokenizer
        self._has_template = target.template is not None
        self._has_text = [False] * self._n

    def _whole(self, choices: Sequence[Choice], usage: UsageObject) -> ChatCompletion:
        written = [self._write(index, choice) for index, choice in enumerate(choices)]
        return ChatCompletion(object="chat.completion", **self._head, choices=written, usage=usage)

    def _write(self, index: int, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(role="assistant", content=self._text(index, choice.text), refusal=None),
            logprobs=self._logprobs(choice),
            finish_reason=finish_reason_of(choice.finish_reason),
        )

    def _chunk(self, choices: Sequence[ChatChunkChoice], **usage: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", **self._head, choices=list(choices), **usage)

    def _choices(self, index: int, delta: Delta, text: str, *, is_first: bool) -> Iterator[ChatChunkChoice]:
        if is_first:
            role = ChatDelta(role="assistant", content="")
            yield ChatChunkChoice(index=index, delta=role, logprobs=None, finish_reason=None)
        reason = delta.finish_reason
        yield ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=text) if text or reason is None else ChatDelta(),
            logprobs=self._logprobs(delta),
            finish_reason=None if reason is None else finish_reason_of(reason),
        )

    def _text(self, index: int, text: str) -> str:
        """Without the blank between a template's text and its answer, which is no part of the answer."""
        if self._has_template and not self._has_text[index]:
            text = text.lstrip()
        self._has_text[index] = self._has_text[index] or bool(text)
        return text

    def _logprobs(self, part: Choice | Delta) -> ChatLogprobs | None:
        return _chat_logprobs(self._tokenizer, part.logprobs or ()) if self._has_logprobs else None


def _chat_logprobs(tokenizer: PreTrainedTokenizerFast, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    """The nested format of `/v1/chat/completions`."""
    return ChatLogprobs(content=[_chat_token(tokenizer, entry) for entry in entries], refusal=None)


def _chat_token(tokenizer: PreTrainedTokenizerFast, entry: TokenLogprob) -> TokenLogprobs:
    chosen = _chat_alternative(tokenizer, entry.token_id, entry.logprob)
    top = [_chat_alternative(tokenizer, token_id, logprob) for token_id, logprob in entry.top]
    return TokenLogprobs(token=chosen.token, bytes=chosen.bytes, logprob=chosen.logprob, top_logprobs=top)


def _chat_alternative(tokenizer: PreTrainedTokenizerFast, token_id: int, logprob: float) -> TopLogprob:
    content = token_bytes(tokenizer, token_id)
    return TopLogprob(token=content.decode(errors="replace"), bytes=list(content), logprob=max(logprob, LOWEST))
