"""`/v1/completions`, as in openai `types/completion_create_params.py` and `types/completion.py`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from app.answers.views.reply import Reply
from app.http.fields import (
    MAX_N,
    FreeText,
    Identity,
    ModelName,
    Sampling,
    StreamOptions,
    Text,
    TokenId,
    Unsupported,
    UsageObject,
)
from app.sampling import MAX_LOGPROBS

MAX_PROMPTS: Final = 64
MAX_TOKEN_IDS: Final = 131_072


TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS)]
Prompt = (
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(Sampling):
    """A text to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "headline", "prompt": "The council met on Monday", "max_tokens": 24, "temperature": 0},
                {"model": "headline", "prompt": ["One text", "and another"], "n": 2, "seed": 7, "stop": ["\n"]},
            ]
        }
    )

    model: ModelName
    prompt: Prompt = Field(
        description="A string, a list of strings, token ids, or a list of token ids. A string is encoded with the "
        "tokenizer's beginning-of-sequence token and stands raw after the task's prompt, without its template; token "
        "ids are used as they are."
    )
    n: int | None = Field(None, ge=1, le=MAX_N, description="Choices for each prompt.")
    echo: bool | None = Field(None, description="Put the prompt before the text, and its log-probabilities too.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Report each token's log-probability and this many alternatives."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    free_text: FreeText = None
    user: Identity = None
    best_of: Unsupported = None
    suffix: Unsupported = None

    def given_sampling(self) -> dict[str, Any]:
        given = super().given_sampling()
        if self.logprobs is not None:
            given["logprobs"] = self.logprobs
            if self.echo:
                given["prompt_logprobs"] = self.logprobs
        return given


class Logprobs(Reply):
    """OpenAI's older format: four lists with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One text. `finish_reason` is null in every chunk of a stream but the last."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Reply):
    """The answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str = Field(description="The version that answered, such as `headline@2`.")
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageObject | None = None
