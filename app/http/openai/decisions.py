"""`POST /v1/decisions`, as in openai `types/decision_create_params.py` and `types/decision.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response

from app.answers.generating.labels import LabelChances, LabelScores
from app.answers.generating.questions import Question, answer_questions
from app.answers.views import Reply
from app.errors import InvalidInput, naming, naming_text
from app.http.dependencies import EngineCallDep, FinderDep, LabelsDep
from app.http.fields import Identity, ModelName, Strict, Text, Unsupported, reply
from app.http.openai.chat_schema import MAX_CONTENT_PARTS
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import GuardedRoute
from app.registry.formats.bounds import MAX_LABEL_CHARS

MAX_QUESTIONS: Final = 64
MAX_CHOICES: Final = 64
MAX_LEVELS: Final = 10
MAX_INSTRUCTIONS_CHARS: Final = 8192
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]
Name = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
Instructions = Annotated[str, Field(min_length=1, max_length=MAX_INSTRUCTIONS_CHARS)]
router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])


class InputText(Strict):
    """A piece of a message's text."""

    type: Literal["input_text"]
    text: Text


class InputMessage(Strict):
    """A message whose text is judged."""

    role: Literal["user"]
    content: Text | Annotated[list[InputText], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
    type: Literal["message"] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Predicate(Strict):
    """How likely is it that a statement about the input is true?"""

    type: Literal["predicate"]
    instructions: Instructions
    name: Name | None = None

    def question(self) -> Question:
        return Question.predicate(self.instructions)

    def answer(self, chances: LabelChances) -> PredicateAnswer:
        return PredicateAnswer(name=self.name, label_mass=chances.mass, probability=chances.probabilities[0])


class Option(Strict):
    """One of the answers to choose from."""

    value: Label | bool
    description: Annotated[str, Field(max_length=MAX_INSTRUCTIONS_CHARS)] | None = None

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else str(self.value).lower()


class ChoiceQuestion(Strict):
    """Which of these?"""

    type: Literal["choice"]
    instructions: Instructions
    choices: list[Option] = Field(min_length=2, max_length=MAX_CHOICES)
    name: Name | None = None

    def question(self) -> Question:
        """Raises InvalidInput: two answers read the same."""
        return Question.choice(
            self.instructions,
            [option.text for option in self.choices],
            [option.description for option in self.choices],
        )

    def answer(self, chances: LabelChances) -> ChoiceAnswer:
        return ChoiceAnswer.of(self.name, [option.value for option in self.choices], chances)


class Level(Strict):
    """One step of a scale."""

    label: Label
    description: Annotated[str, Field(max_length=MAX_INSTRUCTIONS_CHARS)] | None = None


class ScoreQuestion(Strict):
    """Where on this scale?"""

    type: Literal["score"]
    instructions: Instructions
    levels: list[Level] = Field(min_length=2, max_length=MAX_LEVELS, description="From the lowest to the highest.")
    name: Name | None = None

    def question(self) -> Question:
        """Raises InvalidInput: two answers read the same."""
        return Question.scale(
            self.instructions,
            [level.label for level in self.levels],
            [level.description for level in self.levels],
        )

    def answer(self, chances: LabelChances) -> ScoreAnswer:
        pairs = enumerate(zip(self.levels, chances.probabilities, strict=True))
        return ScoreAnswer(
            name=self.name,
            label_mass=chances.mass,
            score=sum(value * probability for value, probability in enumerate(chances.probabilities)),
            confidence=max(chances.probabilities),
            probabilities=[LevelProbability(value=v, label=level.label, probability=p) for v, (level, p) in pairs],
        )


AnyQuestion = Annotated[Predicate | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionRequest(Strict):
    """Questions about an input. A task with labels has its own question: leave `questions` out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "sentiment", "input": "a gorgeous, witty film"},
                {
                    "model": "smollm2-135m-instruct",
                    "input": "a gorgeous, witty film",
                    "questions": [{"type": "predicate", "instructions": "The reviewer liked the film."}],
                },
            ]
        }
    )

    model: ModelName
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
    questions: Annotated[list[AnyQuestion], Field(max_length=MAX_QUESTIONS)] | None = None
    safety_identifier: Identity = None
    prompt_cache_key: Identity = None
    prompt_cache_options: Unsupported = None

    @property
    def text(self) -> str:
        return self.input if isinstance(self.input, str) else "\n".join(message.text for message in self.input)


class Answer(Reply):
    """What every answer has."""

    name: str | None
    label_mass: float = Field(description="The model's whole belief in the possible answers before normalizing.")


class PredicateAnswer(Answer):
    """`probability` that the statement is true."""

    type: Literal["predicate"] = "predicate"
    probability: float


class ChoiceProbability(Reply):
    """Of one choice."""

    value: str | bool
    probability: float


class ChoiceAnswer(Answer):
    """The likeliest choice; `confidence` is its probability."""

    type: Literal["choice"] = "choice"
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]

    @classmethod
    def of(cls, name: str | None, values: Sequence[str | bool], chances: LabelChances) -> ChoiceAnswer:
        pairs = zip(values, chances.probabilities, strict=True)
        return cls(
            name=name,
            label_mass=chances.mass,
            choice=values[chances.best],
            confidence=chances.probabilities[chances.best],
            probabilities=[ChoiceProbability(value=value, probability=probability) for value, probability in pairs],
        )


class LevelProbability(Reply):
    """Of one level; `value` is its place on the scale, from 0."""

    value: int
    label: str
    probability: float


class ScoreAnswer(Answer):
    """`score` is the levels' mean value by their probabilities; `confidence` is the likeliest level's probability."""

    type: Literal["score"] = "score"
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class InputTokensDetails(Reply):
    """Where the input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Reply):
    """Nothing reasons here."""

    reasoning_tokens: int


class DecisionUsage(Reply):
    """Tokens of a decision. Labels are scored, not generated, so there are no output tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, scores: Sequence[LabelScores]) -> DecisionUsage:
        num_tokens, num_cached = sum(each.num_prompt for each in scores), sum(each.num_cached for each in scores)
        return cls(
            input_tokens=num_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=num_cached, cache_write_tokens=0),
            output_tokens=0,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=num_tokens,
        )


class Decision(Reply):
    """Answers, in the questions' order."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage


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
