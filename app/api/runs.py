"""Runs: a task applied to an input, as its template and labels say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.api.auth import cache_salt
from app.api.batch import all_of
from app.api.generation import Ask, collect, encode_for, finish_reason_of, generate_all, make_params
from app.api.labels import LabelChances
from app.api.schemas.fields import Usage
from app.api.schemas.runs import RunChunk, RunResult
from app.errors import InvalidInput

if TYPE_CHECKING:
    from app.api.services import Services
    from app.api.targets import Target

DEFAULT_MAX_TOKENS = 64
QUEUED_BATCHES = 4
"""What one call puts into the queue at a time, in the engine's batches: enough to keep it busy, no more than others
need room beside it."""
GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class Run:
    """One input to one task. `param` is the input's name in an error."""

    target: Target
    text: str
    param: str


@dataclass(frozen=True)
class RunOutcome:
    """What a run gave, and what it took."""

    result: RunResult
    num_prompt: int
    num_completion: int = 0
    num_cached: int = 0


async def run_all(
    services: Services, runs: Sequence[Run], given: dict[str, Any], deadline_s: float
) -> list[RunOutcome]:
    """All inputs in one batch, whatever their tasks; outcomes in order.

    Args:
        given: sampling parameters of the request, for tasks that generate.

    Raises:
        SoftswapError: the first one; if an input is at fault, `param` names it.
    """
    services.check_accepting()
    at_once = QUEUED_BATCHES * services.engine.config.max_num_seqs
    return await all_of((_run_named(services, run, given, deadline_s) for run in runs), at_once=at_once)


def total_usage(outcomes: Sequence[RunOutcome]) -> Usage:
    return Usage.of(
        num_prompt=sum(outcome.num_prompt for outcome in outcomes),
        num_completion=sum(outcome.num_completion for outcome in outcomes),
        num_cached=sum(outcome.num_cached for outcome in outcomes),
    )


async def stream_run(
    services: Services, run: Run, given: dict[str, Any], deadline_s: float
) -> AsyncGenerator[RunChunk, None]:
    """The text of one run piece by piece, blanks at its beginning removed; in the end the reason and the usage."""
    if run.target.labels:
        raise InvalidInput(f"{run.target.flow} answers with a label, which cannot be streamed", param="stream")
    ask = await _ask(services, run, given)
    num_generated, num_cached, has_text = 0, 0, False
    async with aclosing(generate_all(services, run.target, [ask], deadline_s)) as deltas:
        async for _, delta in deltas:
            num_generated += len(delta.token_ids)
            num_cached = max(num_cached, delta.num_cached_tokens)
            text = delta.text if has_text else delta.text.lstrip()
            has_text = has_text or bool(text)
            if text:
                yield RunChunk(model=run.target.model_id, text=text)
            if delta.finish_reason is not None:
                num_prompt = len(ask.token_ids) + run.target.num_virtual_tokens
                usage = Usage.of(num_prompt=num_prompt, num_completion=num_generated, num_cached=num_cached)
                reason = finish_reason_of(delta.finish_reason)
                yield RunChunk(model=run.target.model_id, text="", finish_reason=reason, usage=usage)


async def _run_named(services: Services, run: Run, given: dict[str, Any], deadline_s: float) -> RunOutcome:
    try:
        if run.target.labels:
            return await _choose_label(services, run, given, deadline_s)
        return await _generate(services, run, given, deadline_s)
    except InvalidInput as error:
        if error.param not in given:
            error.param = run.param
        raise


async def _choose_label(services: Services, run: Run, given: dict[str, Any], deadline_s: float) -> RunOutcome:
    if given:
        name = next(iter(given))
        raise InvalidInput(f"{run.target.flow} answers with a label and samples nothing; leave {name} out", param=name)
    template, labels = run.target.input_template, run.target.labels
    token_ids = await encode_for(services, run.target.prompt, template.render(run.text))
    chances = await score_labels(services, run.target, token_ids, services.labels.encode(template, labels), deadline_s)
    ranked = sorted(zip(labels, chances.probabilities, strict=True), key=lambda pair: -pair[1])
    result = RunResult(
        model=run.target.model_id, label=labels[chances.best], probabilities=dict(ranked), label_mass=chances.mass
    )
    return RunOutcome(result, len(token_ids) + run.target.num_virtual_tokens)


async def score_labels(
    services: Services,
    target: Target,
    token_ids: Sequence[int],
    label_ids: Sequence[Sequence[int]],
    deadline_s: float,
) -> LabelChances:
    """Chances of each label as the continuation of `token_ids` behind the target's prompt."""
    log_likelihoods = await services.engine.score(
        token_ids, label_ids, prompt=target.prompt, cache_salt=cache_salt.get(), flow=target.flow, deadline_s=deadline_s
    )
    chances = LabelChances.from_log_likelihoods(log_likelihoods, target.label_temperature)
    services.metrics.observe_label_mass(chances.mass)
    return chances


async def _generate(services: Services, run: Run, given: dict[str, Any], deadline_s: float) -> RunOutcome:
    ask = await _ask(services, run, given)
    [choice] = await collect(services, run.target, [ask], deadline_s)
    reason = "length" if choice.finish_reason is None else finish_reason_of(choice.finish_reason)
    result = RunResult(model=run.target.model_id, text=choice.text.strip(), finish_reason=reason)
    num_prompt = len(ask.token_ids) + run.target.num_virtual_tokens
    return RunOutcome(result, num_prompt, len(choice.token_ids), choice.num_cached_tokens)


async def _ask(services: Services, run: Run, given: dict[str, Any]) -> Ask:
    token_ids = await encode_for(services, run.target.prompt, run.target.input_template.render(run.text))
    silent = {} if "temperature" in run.target.sampling else GREEDY
    params = make_params(
        services,
        run.target,
        {**silent, **given},
        num_tokens=len(token_ids),
        default_max_tokens=DEFAULT_MAX_TOKENS,
    )
    return Ask(token_ids, params)
