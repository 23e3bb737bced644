"""`POST /v1/decisions`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.answers.generating.questions import answer_questions
from app.errors import InvalidInput, naming, naming_text
from app.http.dependencies import EngineCallDep, FinderDep, LabelsDep
from app.http.fields import reply
from app.http.openai.decisions_schema import ChoiceAnswer, Decision, DecisionRequest, DecisionUsage
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import GuardedRoute

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


@router.post(
    "/v1/decisions",
    summary="Choose among known answers",
    response_model=Decision,
    responses=describe_statuses(400, 401, 404, 408, 413, 415, 500, 503, 504),
)
async def create_decision(
    request: DecisionRequest, finder: FinderDep, scorer: LabelsDep, call: EngineCallDep
) -> Response:
    """OpenAI's decisions, from the log-likelihood of each possible answer.

    A task with labels answers its own question, as one `choice`, and takes no `questions`. Any other model gets each
    question as text: the input, an empty line, the question with its options, and `Answer:`.
    """
    target = await finder.find(request.model)
    if target.labels:
        if request.questions:
            message = f"{target.flow} has labels and answers its own question; leave questions out"
            raise InvalidInput(message, param="questions")
        with naming_text("input"):
            scores = await scorer.score(target, request.text, call)
        own = ChoiceAnswer.of(target.flow, target.labels, scores.chances)
        return reply(Decision(model=target.model_id, answers=[own], usage=DecisionUsage.of([scores])))
    if target.is_ensemble:
        raise InvalidInput("an ensemble answers its own question, and without labels it has none", param="model")
    if not request.questions:
        raise InvalidInput(f"{target.flow} has no labels, so the request needs questions", param="questions")
    questions = []
    for index, asked in enumerate(request.questions):
        with naming(f"questions.{index}"):
            questions.append(asked.question())
    found = await answer_questions(scorer, target.members[0], request.text, questions, call)
    answers = [asked.answer(each.chances) for asked, each in zip(request.questions, found, strict=True)]
    return reply(Decision(model=target.model_id, answers=answers, usage=DecisionUsage.of(found)))
