"""`POST /v1/completions`, as in openai `types/completion_create_params.py` and `types/completion.py`."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, cast

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response
from transformers import PreTrainedTokenizerFast

from app.answers.generating.completer import choose_form
from app.answers.generating.generation import Choice, ask_n, finish_reason_of
from app.answers.targets import Target
from app.answers.views import Reply
from app.engine.output.detokenizer import decode_ids, token_bytes
from app.engine.output.output import Delta
from app.http.dependencies import BackboneDep, CompleterDep, EngineCallDep, FinderDep
from app.http.fields import (
    MAX_N,
    Text,
    TokenId,
    Unsupported,
    UsageObject,
)
from app.http.openai.choice_writer import LOWEST, ChoicesRequest, ChoiceWriter
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.guard import GuardedRoute
from app.model.backbone import Backbone
from app.model.layout import BARE
from app.model.sampler import TokenLogprob
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
DEFAULT_MAX_TOKENS = 16
router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


class CompletionRequest(ChoicesRequest):
    """A text to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "headline", "prompt": "The council met on Monday", "max_tokens": 24, "temperature": 0},
                {"model": "headline", "prompt": ["One text", "and another"], "n": 2, "seed": 7, "stop": ["\n"]},
            ]
        }
    )

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


@router.post(
    "/v1/completions",
    summary="Continue a text",
    response_model=Completion,
    responses=STREAMED | describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_completion(
    request: CompletionRequest, backbone: BackboneDep, finder: FinderDep, completer: CompleterDep, call: EngineCallDep
) -> Response:
    """OpenAI's completions: `text_completion` objects, or a stream of them."""
    target = choose_form(await finder.find_one(request.model), free_text=request.free_text)
    request.check_stream_options()
    texts = [await _read_text(backbone, target, prompt, request) for prompt in _list_prompts(request)]
    given = request.given_sampling()
    asks = []
    for text in texts:
        num_tokens = len(text.token_ids)
        params = completer.make_params(target, given, num_tokens=num_tokens, default_max_tokens=DEFAULT_MAX_TOKENS)
        asks += ask_n(text.token_ids, params, request.n or 1)
    writer = _CompletionWriter(backbone, target, request, texts)
    return await writer.answer(completer.stream(target, asks, call))


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


async def _read_text(backbone: Backbone, target: Target, prompt: str | list[int], request: CompletionRequest) -> _Text:
    if isinstance(prompt, str):
        return _Text(await target.encode(backbone.tokenizer, prompt, BARE), prompt)
    echoed = decode_ids(backbone.tokenizer, prompt, skip_special_tokens=True) if request.echo else ""
    return _Text(tuple(prompt), echoed)


class _CompletionWriter(ChoiceWriter):
    """In the words of `/v1/completions`."""

    def __init__(self, backbone: Backbone, target: Target, request: CompletionRequest, texts: Sequence[_Text]) -> None:
        super().__init__(
            backbone,
            target,
            request,
            id_prefix="cmpl",
            nums_tokens=[len(text.token_ids) for text in texts],
            has_logprobs=request.logprobs is not None,
        )
        self._texts = texts if request.echo else None
        self._formats = [_LegacyLogprobs(backbone.tokenizer) for _ in range(len(texts) * self._n)]

    def _whole(self, choices: Sequence[Choice], usage: UsageObject) -> Completion:
        written = [self._write(index, choice, choice.text, is_first=True) for index, choice in enumerate(choices)]
        return self._chunk(written, usage=usage)

    def _chunk(self, choices: Sequence[CompletionChoice], **usage: Any) -> Completion:
        return Completion(object="text_completion", **self._head, choices=list(choices), **usage)

    def _choices(self, index: int, delta: Delta, text: str, *, is_first: bool) -> Iterator[CompletionChoice]:
        yield self._write(index, delta, text, is_first=is_first)

    def _write(self, index: int, part: Choice | Delta, text: str, *, is_first: bool) -> CompletionChoice:
        echoed = self._texts[index // self._n] if self._texts is not None and is_first else None
        reason = part.finish_reason
        return CompletionChoice(
            index=index,
            text=text if echoed is None else echoed.text + text,
            logprobs=self._write_logprobs(index, part, echoed) if self._has_logprobs else None,
            finish_reason=None if reason is None else finish_reason_of(reason),
        )

    def _write_logprobs(self, index: int, part: Choice | Delta, echoed: _Text | None) -> Logprobs:
        token_ids, entries = list(part.token_ids), list(part.logprobs or ())
        if echoed is not None:
            token_ids = [*echoed.token_ids, *token_ids]
            entries = [*(part.prompt_logprobs or ()), *entries]
        return self._formats[index].format(token_ids, entries)


class _LegacyLogprobs:
    """The four lists of `/v1/completions` for one choice, chunk by chunk.

    A token that is a part of a character shows as `bytes:\\xe2\\x80`, as at OpenAI, so that different tokens stay
    different. Offsets count characters of the text; special tokens take none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def format(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> Logprobs:
        """Args: entries: one for each token; None for a token that nothing precedes."""
        return Logprobs(
            tokens=[self._show(token_id) for token_id in token_ids],
            token_logprobs=[None if entry is None else max(entry.logprob, LOWEST) for entry in entries],
            top_logprobs=[None if entry is None else self._alternatives(entry) for entry in entries],
            text_offset=[self._advance(token_id) for token_id in token_ids],
        )

    def _alternatives(self, entry: TokenLogprob) -> dict[str, float]:
        ranked: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            ranked.setdefault(self._show(token_id), max(logprob, LOWEST))
        return ranked

    def _show(self, token_id: int) -> str:
        content = token_bytes(self._tokenizer, token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._special_ids:
            self._offset += len(self._decoder.decode(token_bytes(self._tokenizer, token_id)))
        return offset
