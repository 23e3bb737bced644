"""Questions of `/v1/decisions` as texts, for a backbone or a task without labels of its own.

The text is the input, an empty line, the question, and `Answer:`; what follows is scored, not generated:

    a gorgeous, witty film

    True or false: The reviewer liked the film.
    Answer: true
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.answers.generating.labels import LabelChances
from app.errors import InvalidInput
from app.http.openai.decisions_schema import (
    ChoiceAnswer,
    ChoiceProbability,
    ChoiceQuestion,
    LevelProbability,
    Predicate,
    PredicateAnswer,
    ScoreAnswer,
    ScoreQuestion,
)
from app.model.layout import Template

TEMPLATE = Template("{input}\nAnswer: {target}")


@dataclass(frozen=True)
class AskedPredicate:
    """Whether a statement is true."""

    question: Predicate

    @property
    def answers(self) -> list[str]:
        return ["true", "false"]

    def write(self, text: str) -> str:
        return f"{text}\n\nTrue or false: {self.question.instructions}"

    def read(self, chances: LabelChances) -> PredicateAnswer:
        return PredicateAnswer(name=self.question.name, label_mass=chances.mass, probability=chances.probabilities[0])


@dataclass(frozen=True)
class AskedChoice:
    """Which of several."""

    question: ChoiceQuestion

    @property
    def answers(self) -> list[str]:
        return [_spell(option.value) for option in self.question.choices]

    def write(self, text: str) -> str:
        descriptions = [option.description for option in self.question.choices]
        return f"{text}\n\n{self.question.instructions}\n{_list('Options', self.answers, descriptions)}"

    def read(self, chances: LabelChances) -> ChoiceAnswer:
        values = [option.value for option in self.question.choices]
        return choice_answer(self.question.name, values, chances)


@dataclass(frozen=True)
class AskedScore:
    """Where on a scale."""

    question: ScoreQuestion

    @property
    def answers(self) -> list[str]:
        return [level.label for level in self.question.levels]

    def write(self, text: str) -> str:
        descriptions = [level.description for level in self.question.levels]
        scale = _list("Scale, from lowest to highest", self.answers, descriptions)
        return f"{text}\n\n{self.question.instructions}\n{scale}"

    def read(self, chances: LabelChances) -> ScoreAnswer:
        ranked = list(enumerate(zip(self.answers, chances.probabilities, strict=True)))
        return ScoreAnswer(
            name=self.question.name,
            label_mass=chances.mass,
            score=sum(value * probability for value, (_, probability) in ranked),
            confidence=max(chances.probabilities),
            probabilities=[LevelProbability(value=v, label=label, probability=p) for v, (label, p) in ranked],
        )


Asked = AskedPredicate | AskedChoice | AskedScore


def ask(question: Predicate | ChoiceQuestion | ScoreQuestion, param: str) -> Asked:
    """Raises InvalidInput: two answers read the same."""
    if isinstance(question, Predicate):
        return AskedPredicate(question)
    asked = AskedChoice(question) if isinstance(question, ChoiceQuestion) else AskedScore(question)
    if len(set(asked.answers)) < len(asked.answers):
        raise InvalidInput("two of the answers read the same", param=param)
    return asked


def choice_answer(name: str | None, values: Sequence[str | bool], chances: LabelChances) -> ChoiceAnswer:
    return ChoiceAnswer(
        name=name,
        label_mass=chances.mass,
        choice=values[chances.best],
        confidence=chances.probabilities[chances.best],
        probabilities=[
            ChoiceProbability(value=value, probability=probability)
            for value, probability in zip(values, chances.probabilities, strict=True)
        ],
    )


def _spell(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _list(title: str, answers: Sequence[str], descriptions: Sequence[str | None]) -> str:
    """One line where the answers speak for themselves, one line each where they are described."""
    if not any(descriptions):
        return f"{title}: {', '.join(answers)}"
    lines = [
        f"- {answer}: {text}" if text else f"- {answer}" for answer, text in zip(answers, descriptions, strict=True)
    ]
    return "\n".join([f"{title}:", *lines])
