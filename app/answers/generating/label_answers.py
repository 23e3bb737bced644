"""Labels as completions and chats: chosen as runs choose them, and written as if they had been generated.

What is likeliest token by token need be no label, and even among the labels' own tokens it need not be the likeliest
label: a likely beginning may have no likely end. So labels are scored whole, and a chat says what a run of it says.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app.answers.batch import max_at_once
from app.answers.generating.generation import Ask, collect, generate_all, make_params
from app.answers.generating.labels import TINY
from app.answers.generating.runs import score_labels
from app.engine.gather import all_of
from app.engine.output.delta import Delta
from app.engine.output.detokenizer import Detokenizer
from app.engine.output.scoring import Scoring, ScoringPlan
from app.engine.sequence import FinishReason
from app.errors import InvalidInput
from app.http.protection.auth import cache_salt
from app.model.sampler import draw_among
from app.sampling import SamplingParams

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.answers.targets import Target

DRAWN_BY = ("temperature", "top_p", "top_k", "min_p")
"""What of a version's defaults holds for its labels; the rest is for texts."""
OF_TOKENS = ("logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos")
NOTHING = SamplingParams()
NUM_TRIED = 8
"""Labels that are scored at a time when the likeliest of many is looked for."""


def choose_form(target: Target, *, free_text: bool | None) -> Target:
    """The target as a request wants it answer: without labels where it shall write freely.

    Raises InvalidInput: a label is asked for, and there are none.
    """
    if free_text is False and not target.labels:
        raise InvalidInput(f"{target.flow} has no labels and can only write freely", param="free_text")
    return replace(target, labels=()) if free_text else target


def make_answer_params(
    services: Services, target: Target, given: dict[str, Any], *, num_tokens: int, default_max_tokens: int | None
) -> SamplingParams:
    """`make_params`, and for a label: the likeliest where request and version name no temperature, and all of it.

    Raises InvalidInput: the request gives something that shapes tokens and cannot shape labels.
    """
    if not target.labels:
        return make_params(services, target, given, num_tokens=num_tokens, default_max_tokens=default_max_tokens)
    for name in OF_TOKENS:
        if given.get(name, getattr(NOTHING, name)) != getattr(NOTHING, name):
            message = f"{target.flow} answers with one of its labels, and {name} is for texts; set free_text to get one"
            raise InvalidInput(message, param=name)
    defaults = {name: target.sampling[name] for name in DRAWN_BY if name in target.sampling}
    plan = services.labels.plan(target.input_template, target.labels)
    longest = max(map(len, plan.continuations))
    drawn = replace(target, sampling={"temperature": 0.0, **defaults})
    return make_params(services, drawn, {"max_tokens": longest, **given}, num_tokens=num_tokens, default_max_tokens=0)


def answer_all(
    services: Services, target: Target, asks: Sequence[Ask], deadline_s: float
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of all choices: of texts as they come, of a label in one piece.

    Closing it ends the work behind it. Who wants no new token gets none, nor a label.
    """
    is_writing = not target.labels or not asks[0].params.max_tokens
    return (generate_all if is_writing else _write_labels)(services, target, asks, deadline_s)


async def _write_labels(
    services: Services, target: Target, asks: Sequence[Ask], deadline_s: float
) -> AsyncGenerator[tuple[int, Delta], None]:
    """All choices of one text are made from one scoring of it."""
    services.check_accepting()
    ends_at = time.monotonic() + deadline_s
    plan = services.labels.plan(target.input_template, target.labels)
    at_once = max_at_once(services.engine, services.engine.num_scored_at_once(plan.num_sequences))
    look = _find_likeliest if asks[0].params.is_greedy and plan.num_sequences > NUM_TRIED else _score_all
    texts = list(dict.fromkeys(ask.token_ids for ask in asks))
    finding = (look(services, target, token_ids, plan, ends_at) for token_ids in texts)
    found = dict(zip(texts, await all_of(finding, at_once=at_once), strict=True))
    for index, ask in enumerate(asks):
        place = _choose(found[ask.token_ids], ask.params)
        delta = _write(services, target, ask, place, plan.continuations[place])
        if ask.params.logprobs is not None:
            delta = await _with_logprobs(services, target, ask, delta, ends_at - time.monotonic())
        yield index, replace(delta, num_cached_tokens=found[ask.token_ids].num_cached)


@dataclass(frozen=True)
class _Found:
    """Attributes:
    best: place of the likeliest label.
    probabilities: of each, as runs give them; empty where only the likeliest was looked for.
    """

    best: int
    probabilities: tuple[float, ...]
    num_cached: int


async def _score_all(
    services: Services, target: Target, token_ids: Sequence[int], plan: ScoringPlan, ends_at: float
) -> _Found:
    judged = await score_labels(services, target, token_ids, plan, ends_at - time.monotonic())
    return _Found(judged.best, judged.chances.probabilities, judged.num_cached)


async def _find_likeliest(
    services: Services, target: Target, token_ids: Sequence[int], plan: ScoringPlan, ends_at: float
) -> _Found:
    """What `_score_all` finds to be the likeliest of many labels, from a few of them.

    No label is likelier than its first token. The labels with the likeliest ones are scored first, and once a label is
    likelier than all first tokens that are left, it is likelier than their labels.
    """

    async def score(continuations: Sequence[Sequence[int]]) -> Scoring:
        return await services.engine.score(
            token_ids,
            services.engine.plan_scoring(continuations),
            prompt=target.prompt,
            cache_salt=cache_salt.get(),
            flow=target.flow,
            deadline_s=ends_at - time.monotonic(),
        )

    label_ids = plan.continuations
    firsts = list(dict.fromkeys(ids[:1] for ids in label_ids))
    scoring = await score(firsts)
    first_to_bound = dict(zip(firsts, scoring.log_likelihoods, strict=True))
    bounds = [first_to_bound[ids[:1]] for ids in label_ids]
    left = sorted(range(len(label_ids)), key=lambda place: -bounds[place])
    place_to_score: dict[int, float] = {}
    while left and bounds[left[0]] >= max(place_to_score.values(), default=-math.inf):
        tried, left = left[:NUM_TRIED], left[NUM_TRIED:]
        scores = (await score([label_ids[place] for place in tried])).log_likelihoods
        place_to_score.update(zip(tried, scores, strict=True))
    best = max(sorted(place_to_score), key=place_to_score.__getitem__)
    return _Found(best, (), min(len(token_ids) + target.num_virtual_tokens, scoring.num_cached_tokens))


def _choose(found: _Found, params: SamplingParams) -> int:
    """The place of the likeliest label; at a temperature, of one drawn from the probabilities that runs give."""
    if params.is_greedy:
        return found.best
    seed = random.getrandbits(63) if params.seed is None else params.seed
    return draw_among([math.log(max(chance, TINY)) for chance in found.probabilities], params, seed)


def _write(services: Services, target: Target, ask: Ask, place: int, label_ids: Sequence[int]) -> Delta:
    """A label as the engine would have generated it, token by token, up to a stop string or `max_tokens`."""
    params, reason, stop = ask.params, FinishReason.STOP, None
    tokenizer = services.backbone.tokenizer
    detokenizer = Detokenizer(
        tokenizer, list(ask.token_ids), params.stop, include_stop=params.include_stop_str_in_output
    )
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


async def _with_logprobs(services: Services, target: Target, ask: Ask, delta: Delta, deadline_s: float) -> Delta:
    """The delta with what the model itself gives to its tokens, from one more forward over the text with them."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=ask.params.logprobs)
    [choice] = await collect(services, target, [Ask((*ask.token_ids, *delta.token_ids), params)], deadline_s)
    own, of_label = choice.prompt_logprobs[: len(ask.token_ids)], choice.prompt_logprobs[len(ask.token_ids) :]
    return replace(
        delta,
        logprobs=tuple(entry for entry in of_label if entry is not None),
        prompt_logprobs=None if ask.params.prompt_logprobs is None else tuple(own),
    )
