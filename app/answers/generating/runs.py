"""Runs: a task applied to an input, as its template and labels say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.answers.batch import ask_each, max_at_once
from app.answers.ensembles import Combine, Ensemble, choose_text, combine_chances
from app.answers.generating.generation import Ask, collect, encode_for, finish_reason_of, generate_all, make_params
from app.answers.generating.labels import LabelChances
from app.engine.gather import all_of
from app.errors import InvalidInput
from app.http.fields import Usage
from app.http.protection.auth import cache_salt
from app.http.tasks.runs_schema import MemberAnswer, RunChunk, RunResult

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.answers.targets import Target
    from app.engine.output.scoring import ScoringPlan

DEFAULT_MAX_TOKENS = 64
GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class Run:
    """One input to one task. `param` is the input's name in an error; `combine` belongs to an ensemble."""

    target: Target | Ensemble
    text: str
    param: str
    combine: Combine = Combine.AVERAGE


@dataclass(frozen=True)
class Judgement:
    """What a version or an ensemble makes of a text.

    Attributes:
        best: place of the label that is the answer.
        num_prompt, num_cached: tokens in front of the answer, and those not computed for it, of all members together.
        members: of an ensemble, what each says by itself; empty for one version.
    """

    best: int
    chances: LabelChances
    num_prompt: int
    num_cached: int
    members: tuple[LabelChances, ...] = ()


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
    widest = max(_num_sequences(services, target) for target in {id(run.target): run.target for run in runs}.values())
    at_once = max_at_once(services.engine, widest)
    return await ask_each(
        runs, lambda run, left_s: _run_named(services, run, given, left_s), deadline_s, at_once=at_once
    )


def _num_sequences(services: Services, answerer: Target | Ensemble) -> int:
    """Of the engine, at a time, for one input."""
    if isinstance(answerer, Ensemble):
        return sum(_num_sequences(services, member) for member in answerer.members)
    if not answerer.labels:
        return 1
    plan = services.labels.plan(answerer.input_template, answerer.labels)
    return services.engine.num_scored_at_once(plan.num_sequences)


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
    target = run.target
    if isinstance(target, Ensemble):
        raise InvalidInput("an ensemble answers once all of its members have; leave stream out", param="stream")
    if target.labels:
        raise InvalidInput(f"{target.flow} answers with a label, which cannot be streamed", param="stream")
    ask = await _ask(services, target, run.text, given)
    num_generated, num_cached, has_text = 0, 0, False
    async with aclosing(generate_all(services, target, [ask], deadline_s)) as deltas:
        async for _, delta in deltas:
            num_generated += len(delta.token_ids)
            num_cached = max(num_cached, delta.num_cached_tokens)
            text = delta.text if has_text else delta.text.lstrip()
            has_text = has_text or bool(text)
            if text:
                yield RunChunk(model=target.model_id, text=text)
            if delta.finish_reason is not None:
                num_prompt = len(ask.token_ids) + target.num_virtual_tokens
                usage = Usage.of(num_prompt=num_prompt, num_completion=num_generated, num_cached=num_cached)
                reason = finish_reason_of(delta.finish_reason)
                yield RunChunk(model=target.model_id, text="", finish_reason=reason, usage=usage)


async def _run_named(services: Services, run: Run, given: dict[str, Any], deadline_s: float) -> RunOutcome:
    try:
        if run.target.labels:
            return await _choose_label(services, run, given, deadline_s)
        if isinstance(run.target, Ensemble):
            return await _choose_text(services, run, run.target, given, deadline_s)
        return await _generate(services, run.target, run.text, given, deadline_s)
    except InvalidInput as error:
        if error.param not in given:
            error.param = run.param
        raise


async def _choose_label(services: Services, run: Run, given: dict[str, Any], deadline_s: float) -> RunOutcome:
    if given:
        name = next(iter(given))
        raise InvalidInput(f"{run.target.flow} answers with a label and samples nothing; leave {name} out", param=name)
    labels = run.target.labels
    judged = await judge(services, run.target, run.text, deadline_s, combine=run.combine)
    chances = judged.chances.probabilities
    ranked = sorted(range(len(labels)), key=lambda place: (-chances[place], place != judged.best))
    result = RunResult(
        model=run.target.model_id,
        label=labels[judged.best],
        probabilities={labels[place]: chances[place] for place in ranked},
        label_mass=judged.chances.mass,
    )
    if isinstance(run.target, Ensemble):
        result.members = [
            MemberAnswer(model=member.model_id, label=labels[each.best], probability=each.probabilities[each.best])
            for member, each in zip(run.target.members, judged.members, strict=True)
        ]
    return RunOutcome(result, judged.num_prompt, num_cached=judged.num_cached)


async def judge(
    services: Services, answerer: Target | Ensemble, text: str, deadline_s: float, *, combine: Combine = Combine.AVERAGE
) -> Judgement:
    """How likely each of the task's labels is; of an ensemble all members are asked in one batch."""
    if not isinstance(answerer, Ensemble):
        return await _judge_alone(services, answerer, text, deadline_s)
    judged = await all_of(_judge_alone(services, member, text, deadline_s) for member in answerer.members)
    members = tuple(each.chances for each in judged)
    best, together = combine_chances(members, combine)
    num_prompt, num_cached = sum(each.num_prompt for each in judged), sum(each.num_cached for each in judged)
    return Judgement(best, together, num_prompt, num_cached, members)


async def _judge_alone(services: Services, target: Target, text: str, deadline_s: float) -> Judgement:
    template = target.input_template
    token_ids = await encode_for(services, target.prompt, template.render(text))
    plan = services.labels.plan(template, target.labels)
    return await score_labels(services, target, token_ids, plan, deadline_s)


async def score_labels(
    services: Services,
    target: Target,
    token_ids: Sequence[int],
    plan: ScoringPlan,
    deadline_s: float,
) -> Judgement:
    """How likely each label of the plan is as the continuation of `token_ids` behind the target's prompt."""
    scoring = await services.engine.score(
        token_ids, plan, prompt=target.prompt, cache_salt=cache_salt.get(), flow=target.flow, deadline_s=deadline_s
    )
    chances = LabelChances.from_log_likelihoods(scoring.log_likelihoods, target.label_temperature)
    services.metrics.observe_label_mass(chances.mass)
    num_prompt = len(token_ids) + target.num_virtual_tokens
    return Judgement(chances.best, chances, num_prompt, min(num_prompt, scoring.num_cached_tokens))


async def _choose_text(
    services: Services, run: Run, ensemble: Ensemble, given: dict[str, Any], deadline_s: float
) -> RunOutcome:
    """What most members write, as the first of them writes it."""
    outcomes = await all_of(_generate(services, member, run.text, given, deadline_s) for member in ensemble.members)
    texts = [outcome.result.text or "" for outcome in outcomes]
    chosen = outcomes[choose_text(texts)].result
    members = [
        MemberAnswer(model=outcome.result.model, text=text) for outcome, text in zip(outcomes, texts, strict=True)
    ]
    return RunOutcome(
        RunResult(model=ensemble.model_id, text=chosen.text, finish_reason=chosen.finish_reason, members=members),
        num_prompt=sum(outcome.num_prompt for outcome in outcomes),
        num_completion=sum(outcome.num_completion for outcome in outcomes),
        num_cached=sum(outcome.num_cached for outcome in outcomes),
    )


async def _generate(
    services: Services, target: Target, text: str, given: dict[str, Any], deadline_s: float
) -> RunOutcome:
    ask = await _ask(services, target, text, given)
    [choice] = await collect(services, target, [ask], deadline_s)
    reason = "length" if choice.finish_reason is None else finish_reason_of(choice.finish_reason)
    result = RunResult(model=target.model_id, text=choice.text.strip(), finish_reason=reason)
    num_prompt = len(ask.token_ids) + target.num_virtual_tokens
    return RunOutcome(result, num_prompt, len(choice.token_ids), choice.num_cached_tokens)


async def _ask(services: Services, target: Target, text: str, given: dict[str, Any]) -> Ask:
    token_ids = await encode_for(services, target.prompt, target.input_template.render(text))
    silent = {} if "temperature" in target.sampling else GREEDY
    params = make_params(
        services,
        target,
        {**silent, **given},
        num_tokens=len(token_ids),
        default_max_tokens=DEFAULT_MAX_TOKENS,
    )
    return Ask(token_ids, params)
