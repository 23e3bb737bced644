"""What completions and chats share: fields of a request, and how choices become OpenAI's objects (ChoiceWriter)."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from app.answers.generating.generation import Choice, put_together
from app.answers.generating.runs import Usage
from app.answers.targets import Target
from app.engine.output.output import Delta
from app.errors import InvalidInput
from app.http.fields import MAX_N, Identity, ModelName, Sampling, Strict, UsageObject, reply
from app.http.protection.event_stream import EventStream, TextChunk, dump_set
from app.model.backbone import Backbone

LOWEST = -9999.0
"""What OpenAI writes for a token that cannot be: JSON has no infinity."""


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Send the usage in a last chunk of its own.")
    include_obfuscation: bool | None = Field(
        None, description="Accepted for OpenAI's clients; chunks are never padded."
    )


class ChoicesRequest(Sampling):
    """What completions and chats can both be asked."""

    model: ModelName
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    free_text: bool | None = Field(
        None,
        description="A task with labels answers with one of them, as its runs do; true lets it write freely instead. "
        "Not OpenAI's.",
    )
    user: Identity = None

    def check_stream_options(self) -> None:
        """Raises InvalidInput: options of a stream without a stream."""
        if self.stream_options is not None and not self.stream:
            raise InvalidInput("stream_options needs stream to be true", param="stream_options")


class ChoiceWriter(ABC):
    """Of one request, with its `n` choices for each of its texts.

    Args:
        id_prefix: "cmpl" or "chatcmpl".
        nums_tokens: of each text.
        has_logprobs: whether chunks hold more than text.
    """

    def __init__(
        self,
        backbone: Backbone,
        target: Target,
        request: ChoicesRequest,
        *,
        id_prefix: str,
        nums_tokens: Sequence[int],
        has_logprobs: bool,
    ) -> None:
        self._sizes = [num_tokens + target.num_virtual_tokens for num_tokens in nums_tokens]
        self._n = request.n or 1
        self._has_logprobs = has_logprobs
        self._is_stream = bool(request.stream)
        self._is_usage_wanted = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._head: dict[str, Any] = {
            "id": f"{id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": target.model_id,
            "system_fingerprint": f"fp_{backbone.fingerprint[:12]}",
        }

    async def answer(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> Response:
        """All choices in one object, or a stream of chunks."""
        if self._is_stream:
            return await EventStream.started(self._chunks(deltas), bytes)
        choices = await put_together(deltas, len(self._sizes) * self._n)
        usage = self._usage(
            [len(choice.token_ids) for choice in choices], [choice.num_cached_tokens for choice in choices]
        )
        return reply(self._whole(choices, usage), exclude_unset=True)

    async def _chunks(self, deltas: AsyncGenerator[tuple[int, Delta], None]) -> AsyncGenerator[bytes, None]:
        """JSON of each chunk; those with nothing but text are made from the choice's TextChunk."""
        nothing: dict[str, Any] = {"usage": None} if self._is_usage_wanted else {}
        num_generated, num_cached = ([0] * (len(self._sizes) * self._n) for _ in range(2))
        index_to_plain: dict[int, TextChunk] = {}
        async with aclosing(deltas):
            async for index, delta in deltas:
                num_generated[index] += len(delta.token_ids)
                num_cached[index] = max(num_cached[index], delta.num_cached_tokens)
                plain, text = index_to_plain.get(index), self._text(index, delta.text)
                if plain is not None and delta.finish_reason is None and not self._has_logprobs:
                    yield plain.with_text(text)
                    continue
                for choice in self._choices(index, delta, text, is_first=plain is None):
                    yield dump_set(self._chunk([choice], **nothing))
                if plain is None:
                    index_to_plain[index] = self._plain_chunk(index, nothing)
        if self._is_usage_wanted:
            yield dump_set(self._chunk([], usage=self._usage(num_generated, num_cached)))

    def _plain_chunk(self, index: int, nothing: dict[str, Any]) -> TextChunk:
        """What a choice's chunks are like, but for its first and its last."""

        def chunk_of(text: str) -> BaseModel:
            [choice] = self._choices(index, Delta(), text, is_first=False)
            return self._chunk([choice], **nothing)

        return TextChunk(chunk_of)

    def _usage(self, num_generated: Sequence[int], num_cached: Sequence[int]) -> UsageObject:
        cached = [min(pair) for pair in zip(self._sizes, num_cached[:: self._n], strict=True)]
        return UsageObject.of(Usage(sum(self._sizes), sum(num_generated), sum(cached)))

    def _text(self, index: int, text: str) -> str:
        """A piece of the model's text as the caller gets it."""
        return text

    @abstractmethod
    def _whole(self, choices: Sequence[Choice], usage: UsageObject) -> BaseModel:
        """The answer in one piece."""

    @abstractmethod
    def _chunk(self, choices: Sequence[Any], **usage: Any) -> BaseModel:
        """The object around what `_choices` gives."""

    @abstractmethod
    def _choices(self, index: int, delta: Delta, text: str, *, is_first: bool) -> Iterator[BaseModel]:
        """What a delta adds to a choice, in one chunk or several. Args: text: what `_text` gave."""
