"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter
from starlette.responses import Response

from app.answers.generating.completer import choose_form
from app.answers.generating.generation import Choice, ask_n, finish_reason_of
from app.answers.targets import Target
from app.engine.output.output import Delta
from app.http.dependencies import BackboneDep, CompleterDep, EngineCallDep, FinderDep
from app.http.fields import UsageObject
from app.http.openai.choice_writer import ChoiceWriter, check_stream_options
from app.http.openai.completions_schema import Completion, CompletionChoice, CompletionRequest, Logprobs
from app.http.openai.logprobs import LegacyLogprobs
from app.http.protection.error_table import STREAMED, describe_statuses
from app.http.protection.guard import GuardedRoute
from app.model.backbone import Backbone

DEFAULT_MAX_TOKENS = 16
router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


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
    check_stream_options(request.stream_options, is_stream=bool(request.stream))
    texts = [await _read_text(backbone, target, prompt, request) for prompt in _list_prompts(request)]
    given = request.given_sampling()
    asks = []
    for text in texts:
        num_tokens = len(text.token_ids)
        params = completer.make_params(target, given, num_tokens=num_tokens, default_max_tokens=DEFAULT_MAX_TOKENS)
        asks += ask_n(text.token_ids, params, request.n or 1)
    writer = _CompletionWriter(backbone, target, request, texts)
    return await writer.answer(completer.stream(target, asks, call), is_stream=bool(request.stream))


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
        return _Text(await target.encode(backbone.tokenizer, prompt), prompt)
    echoed = backbone.tokenizer.decode(prompt, skip_special_tokens=True) if request.echo else ""
    return _Text(tuple(prompt), echoed)


class _CompletionWriter(ChoiceWriter):
    """In the words of `/v1/completions`."""

    def __init__(self, backbone: Backbone, target: Target, request: CompletionRequest, texts: Sequence[_Text]) -> None:
        super().__init__(
            backbone,
            target,
            id_prefix="cmpl",
            nums_tokens=[len(text.token_ids) for text in texts],
            n=request.n or 1,
            has_logprobs=request.logprobs is not None,
            stream_options=request.stream_options,
        )
        self._texts = texts if request.echo else None
        self._formats = [LegacyLogprobs(backbone.tokenizer) for _ in range(len(texts) * self._n)]

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
