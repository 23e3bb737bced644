"""`/v1/chat/completions`, as in openai `types/chat/completion_create_params.py` and `types/chat/chat_completion.py`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from app.answers.views import Reply
from app.http.fields import (
    MAX_TOKENS,
    Identity,
    MetadataField,
    Strict,
    Text,
    Unsupported,
    UsageObject,
)
from app.http.openai.choice_writer import ChoicesRequest
from app.sampling import MAX_LOGPROBS

MAX_MESSAGES: Final = 256
MAX_CONTENT_PARTS: Final = 64


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn. What OpenAI's SDK adds to an assistant's turn is accepted if it is null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
    name: Unsupported = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    """Only plain text."""

    type: Literal["text"]


class ChatRequest(ChoicesRequest):
    """A conversation to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "headline",
                    "messages": [{"role": "user", "content": "The council met on Monday"}],
                    "max_completion_tokens": 24,
                }
            ]
        }
    )

    messages: list[Message] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="For a task with a template: one user message, which becomes the template's input, with a system "
        "message, if there is one, on the lines before it. Otherwise the tokenizer's chat template renders the "
        "conversation.",
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Most tokens to generate.")
    logprobs: bool | None = Field(None, description="Report the log-probability of each generated token.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report; needs logprobs.")
    safety_identifier: Identity = None
    prompt_cache_key: Identity = None
    metadata: MetadataField = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    moderation: Unsupported = None
    parallel_tool_calls: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    reasoning_effort: Unsupported = None
    tool_choice: Unsupported = None
    tools: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None

    def given_sampling(self) -> dict[str, Any]:
        given = super().given_sampling()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return given


class TopLogprob(Reply):
    """One alternative."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprobs(TopLogprob):
    """One generated token and its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Of each generated token."""

    content: list[TokenLogprobs]
    refusal: None = None


class AssistantMessage(Reply):
    """The generated turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Reply):
    """The answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageObject


class ChatDelta(Reply):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(Reply):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: UsageObject | None = None
