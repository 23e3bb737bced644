"""Completer: what completions and chats say, a text or one of a task's labels.

A label is chosen as runs choose it, and written as if it had been generated. The sequence that is likeliest token by
token need not be a label, and even among the labels' own tokens it need not be the likeliest label: a likely beginning
may have no likely end. So labels are scored whole, and a chat with a task says what a run of it says.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.answers.call import Call
from app.answers.generating.generation import Ask, TextGenerator
from app.answers.generating.labels import TINY, LabelScorer
from app.answers.targets import Target
from app.engine.admission import ScoringPlan
from app.engine.async_engine import all_of
from app.engine.output.detokenizer import Detokenizer
from app.engine.output.output import Delta
from app.engine.sequence import FinishReason
from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.sampler import draw_among
from app.sampling import SamplingParams

DRAWN_BY = ("temperature", "top_p", "top_k", "min_p")
"""A version's defaults that also hold for its labels; the other ones are for texts."""
OF_TOKENS = (
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "skip_special_tokens",
)
NOTHING = SamplingParams()
NUM_TRIED = 8
"""Labels that are scored at a time when the likeliest of many is looked for."""


def choose_form(target: Target, *, free_text: bool | None) -> Target:
    """The target as a request wants it to answer: without its labels if it is to write freely.

    Raises InvalidInput: a label is asked for, and the task has none.
    """
    if free_text is False and not target.labels:
        raise InvalidInput(f"{target.flow} has no labels and can only write freely", param="free_text")
    return replace(target, labels=()) if free_text else target


@dataclass(frozen=True)
class _FoundLabel:
    """Attributes:
    best: index of the likeliest label.
    probabilities: of each label, as runs give them; empty if only the likeliest was looked for.
    """

    best: int
    probabilities: tuple[float, ...]
    num_cached: int


class Completer:
    """Answers with a text generator, or for tasks with labels with a label scorer."""

    def __init__(self, backbone: Backbone, texts: TextGenerator, labels: LabelScorer) -> None:
        self._tokenizer = backbone.tokenizer
        self._texts = texts
        self._labels = labels

    def make_params(
        self, target: Target, given: dict[str, Any], *, num_tokens: int, default_max_tokens: int | None
    ) -> SamplingParams:
        """As of `TextGenerator`; a label is drawn greedily if neither request nor version names a temperature.

        Raises InvalidInput: the request gives something that shapes tokens and cannot shape labels.
        """
        if not target.labels:
            return self._texts.make_params(target, given, num_tokens=num_tokens, default_max_tokens=default_max_tokens)
        for name in OF_TOKENS:
            if given.get(name, getattr(NOTHING, name)) != getattr(NOTHING, name):
                message = (
                    f"{target.flow} answers with one of its labels, and {name} is for texts; set free_text to get one"
                )
                raise InvalidInput(message, param=name)
        defaults = {name: target.sampling[name] for name in DRAWN_BY if name in target.sampling}
        longest = max(map(len, self._labels.plan(target).continuations))
        drawn = replace(target, sampling={"temperature": 0.0, **defaults})
        return self._texts.make_params(
            drawn, {"max_tokens": longest, **given}, num_tokens=num_tokens, default_max_tokens=0
        )

    def stream(self, target: Target, asks: Sequence[Ask], call: Call) -> AsyncGenerator[tuple[int, Delta], None]:
        """Deltas of all choices with their indices: texts as they are generated, a label in one piece.

        Closing it ends the work. A request for no new tokens gets no label either.
        """
        is_writing = not target.labels or not asks[0].params.max_tokens
        return self._texts.stream(target, asks, call) if is_writing else self._write_labels(target, asks, call)

    async def _write_labels(
        self, target: Target, asks: Sequence[Ask], call: Call
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """All choices of one text are made from one scoring of it."""
        plan = self._labels.plan(target)
        is_searching = asks[0].params.is_greedy and plan.num_sequences > NUM_TRIED
        look = self._find_likeliest if is_searching else self._score_all
        texts = list(dict.fromkeys(ask.token_ids for ask in asks))
        finding = (look(target, token_ids, plan, call) for token_ids in texts)
        at_once = self._labels.num_at_once(self._labels.num_sequences(target))
        found = dict(zip(texts, await all_of(finding, at_once=at_once), strict=True))
        for index, ask in enumerate(asks):
            place = _choose(found[ask.token_ids], ask.params)
            delta = self._write(target, ask, place, plan.continuations[place])
            if ask.params.logprobs is not None:
                delta = await self._add_logprobs(target, ask, delta, call)
            yield index, replace(delta, num_cached_tokens=found[ask.token_ids].num_cached)

    async def _score_all(self, target: Target, token_ids: Sequence[int], plan: ScoringPlan, call: Call) -> _FoundLabel:
        scores = await self._labels.score_after(target, token_ids, plan, call)
        return _FoundLabel(scores.best, scores.chances.probabilities, scores.num_cached)

    async def _find_likeliest(
        self, target: Target, token_ids: Sequence[int], plan: ScoringPlan, call: Call
    ) -> _FoundLabel:
        """The label that `_score_all` finds to be the likeliest of many, from a few of them.

        No label is likelier than its first token. The labels with the likeliest first tokens are scored first, and
        once a label is likelier than all first tokens that are left, it is likelier than their labels.
        """
        label_ids = plan.continuations
        firsts = list(dict.fromkeys(ids[:1] for ids in label_ids))
        scoring = await self._labels.score_some(target, token_ids, firsts, call)
        first_to_bound = dict(zip(firsts, scoring.log_likelihoods, strict=True))
        bounds = [first_to_bound[ids[:1]] for ids in label_ids]
        left = sorted(range(len(bounds)), key=lambda place: -bounds[place])
        place_to_score: dict[int, float] = {}
        while left and bounds[left[0]] >= max(place_to_score.values(), default=-math.inf):
            tried, left = left[:NUM_TRIED], left[NUM_TRIED:]
            found = await self._labels.score_some(target, token_ids, [label_ids[place] for place in tried], call)
            place_to_score.update(zip(tried, found.log_likelihoods, strict=True))
        best = max(sorted(place_to_score), key=place_to_score.__getitem__)
        return _FoundLabel(best, (), min(len(token_ids) + target.num_virtual_tokens, scoring.num_cached_tokens))

    def _write(self, target: Target, ask: Ask, place: int, label_ids: Sequence[int]) -> Delta:
        """A label as the engine would have generated it, token by token, up to a stop string or `max_tokens`."""
        params, reason, stop = ask.params, FinishReason.STOP, None
        detokenizer = Detokenizer.of(self._tokenizer, list(ask.token_ids), params)
        written: list[int] = []
        for token_id in label_ids:
            if len(written) == params.max_tokens:
                reason = FinishReason.LENGTH
                break
            written.append(token_id)
            stop = token_id if token_id in params.stop_token_ids else detokenizer.add(token_id)
            if stop is not None:
                break
        stop = detokenizer.flush() or stop
        is_whole = stop is None and reason is FinishReason.STOP
        return Delta(
            # not every tokenizer gives back what it was given
            text=target.input_template.write_target(target.labels[place]) if is_whole else detokenizer.finish(),
            token_ids=tuple(written),
            finish_reason=FinishReason.STOP if stop is not None else reason,
            stop_reason=stop,
        )

    async def _add_logprobs(self, target: Target, ask: Ask, delta: Delta, call: Call) -> Delta:
        """The delta with the model's own log-probabilities of its tokens, from one more forward over text and label."""
        params = SamplingParams(max_tokens=0, prompt_logprobs=ask.params.logprobs)
        [choice] = await self._texts.collect(target, [Ask((*ask.token_ids, *delta.token_ids), params)], call)
        num_text = len(ask.token_ids)
        return replace(
            delta,
            logprobs=tuple(entry for entry in choice.prompt_logprobs[num_text:] if entry is not None),
            prompt_logprobs=None if ask.params.prompt_logprobs is None else tuple(choice.prompt_logprobs[:num_text]),
        )


def _choose(found: _FoundLabel, params: SamplingParams) -> int:
    """Index of the likeliest label; at a temperature, of one drawn from the probabilities that runs give."""
    if params.is_greedy:
        return found.best
    seed = random.getrandbits(63) if params.seed is None else params.seed
    return draw_among([math.log(max(chance, TINY)) for chance in found.probabilities], params, seed)
