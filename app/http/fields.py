"""What requests and replies share: strictness, the sampling fields, the usage of tokens, and `reply` itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.answers.generating.runs import Usage
from app.answers.views import Reply
from app.http.protection.validation import VOCABULARY_ID_PATTERN
from app.sampling import MAX_LOGIT_BIAS, MAX_STOP, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS, MIN_REPETITION_PENALTY, MIN_TOP_P

MAX_MODEL_CHARS: Final = 256
MAX_TEXT_CHARS: Final = 500_000
MAX_TOKENS: Final = 131_072
MAX_N: Final = 8
MAX_METADATA: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512
MAX_FIELD_NAME_CHARS: Final = 256
MAX_PAGE: Final = 1000
MAX_ID_CHARS: Final = 64


class Strict(BaseModel):
    """A request: no unknown field, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


ModelName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_MODEL_CHARS,
        description=(
            "A task (`sentiment`, its live version), a version (`sentiment@3`, `sentiment@sha256:ab12cd34`), an alias "
            "(`sentiment@canary`), or the backbone's name. The response's `model` is the version that answered."
        ),
    ),
]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
FieldName = Annotated[str, Field(min_length=1, max_length=MAX_FIELD_NAME_CHARS)]
"""Of a field, or a column, of an uploaded file."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
LogitBias = dict[
    Annotated[str, Field(pattern=VOCABULARY_ID_PATTERN)],
    Annotated[float, Field(ge=-100, le=100)],
]
Metadata = dict[
    Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)], Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS)]
]
Identity = Annotated[
    str | None, Field(max_length=512, description="Accepted for OpenAI's clients; neither used nor stored.")
]
Unsupported = Annotated[None, Field(description="Not supported: only null is accepted.")]


class Sampling(Strict):
    """How tokens are chosen. What a request leaves out is taken from the version's own defaults, then from these."""

    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(
        None, ge=MIN_TOP_P, le=1, description="Keep the likeliest tokens up to this probability."
    )
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Keep tokens with this fraction of the likeliest one's probability."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=10)
    logit_bias: LogitBias | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="Token id to a value added to its logit."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="The same seed and request give the same tokens, whatever the load."
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = Field(
        None, description="Strings that end the text; they are not part of it."
    )
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool | None = Field(None, description="Leave the stop string at the text's end.")
    ignore_eos: bool | None = Field(None, description="Continue after an end-of-sequence token.")
    skip_special_tokens: bool | None = Field(
        None, description="Leave special tokens out of the text; true if the version does not say otherwise."
    )

    def given_sampling(self) -> dict[str, Any]:
        """What the request says, by the names of SamplingParams."""
        given = {name: getattr(self, name) for name in Sampling.model_fields}
        given = {name: value for name, value in given.items() if value is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token_id): bias for token_id, bias in self.logit_bias.items()}
        return given


def reply(
    body: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None, exclude_unset: bool = False
) -> Response:
    """A document serialized once, which a handler returns as it is; FastAPI would check and build it again.

    Args: exclude_unset: leave out fields that were not given.
    """
    return Response(body.model_dump_json(exclude_unset=exclude_unset), status, headers, "application/json")


class PromptTokensDetails(Reply):
    """Which prompt tokens did not have to be computed."""

    cached_tokens: int = Field(
        description="Tokens whose keys and values were there already: the task prompt's, and text computed before."
    )


class UsageObject(Reply):
    """Tokens of a request. `prompt_tokens` counts the task prompt's virtual tokens as well as the text's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> UsageObject:
        return cls(
            prompt_tokens=usage.num_prompt,
            completion_tokens=usage.num_completion,
            total_tokens=usage.num_prompt + usage.num_completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.num_cached),
        )


MetadataField = Annotated[
    Metadata | None,
    Field(max_length=MAX_METADATA, description="Accepted for OpenAI's clients; neither used nor stored."),
]
