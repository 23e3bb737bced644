"""`POST /v1/decisions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from app.answers.batch import ask_each, max_at_once
from app.answers.ensembles import Ensemble, find_answerer
from app.answers.generating.generation import encode_for
from app.answers.generating.questions import TEMPLATE, Asked, ask, choice_answer
from app.answers.generating.runs import Judgement, judge, score_labels
from app.answers.naming import naming, naming_text
from app.answers.readiness import Services
from app.answers.targets import Target
from app.errors import InvalidInput
from app.http.openai.decisions_schema import (
    Answer,
    Decision,
    DecisionRequest,
    DecisionUsage,
    InputTokensDetails,
    OutputTokensDetails,
)
from app.http.protection.deps import DeadlineDep, ServicesDep
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import GuardedRoute

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


@router.post(
    "/v1/decisions",
    operation_id="createDecision",
    summary="Choose among known answers",
    response_model=Decision,
    responses=describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_decision(request: DecisionRequest, services: ServicesDep, deadline_s: DeadlineDep) -> Any:
    """OpenAI's decisions, from the log-likelihood of each possible answer.

    A task with labels answers its own question, as one `choice`, and takes no `questions`. Any other model gets each
    question as text: the input, an empty line, the question with its options, and `Answer:`.
    """
    target = await find_answerer(services, request.model)
    services.check_accepting()
    if target.labels:
        return await _decide_by_labels(services, target, request, deadline_s)
    if isinstance(target, Ensemble):
        raise InvalidInput("an ensemble answers its own question, and without labels it has none", param="model")
    if not request.questions:
        raise InvalidInput(f"{target.flow} has no labels, so the request needs questions", param="questions")
    asked = [ask(question, f"questions.{index}") for index, question in enumerate(request.questions)]

    async def answer(numbered: tuple[int, Asked], left_s: float) -> Judgement:
        index, item = numbered
        return await _judge(services, target, item, request.text, param=f"questions.{index}", deadline_s=left_s)

    widest = services.engine.num_scored_at_once(max(len(item.answers) for item in asked))
    judged = await ask_each(enumerate(asked), answer, deadline_s, at_once=max_at_once(services.engine, widest))
    answers = [item.read(each.chances) for item, each in zip(asked, judged, strict=True)]
    return _reply(target, answers, judged)


async def _decide_by_labels(
    services: Services, target: Target | Ensemble, request: DecisionRequest, deadline_s: float
) -> Decision:
    if request.questions:
        message = f"{target.flow} has labels and answers its own question; leave questions out"
        raise InvalidInput(message, param="questions")
    with naming_text("input"):
        judged = await judge(services, target, request.text, deadline_s)
    return _reply(target, [choice_answer(target.flow, target.labels, judged.chances)], [judged])


async def _judge(
    services: Services, target: Target, asked: Asked, text: str, *, param: str, deadline_s: float
) -> Judgement:
    with naming(param):
        token_ids = await encode_for(services, target.prompt, TEMPLATE.render(asked.write(text)))
        plan = services.labels.plan(TEMPLATE, asked.answers)
        return await score_labels(services, target, token_ids, plan, deadline_s)


def _reply(target: Target | Ensemble, answers: Sequence[Answer], judged: Sequence[Judgement]) -> Decision:
    num_tokens, num_cached = sum(each.num_prompt for each in judged), sum(each.num_cached for each in judged)
    usage = DecisionUsage(
        input_tokens=num_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=num_cached, cache_write_tokens=0),
        output_tokens=0,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=num_tokens,
    )
    return Decision.model_validate({"model": target.model_id, "answers": answers, "usage": usage})
