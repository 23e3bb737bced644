"""Questions as texts, for a backbone or a task without labels of its own.

The text is the input, an empty line, the question, and `Answer:`; what follows is scored, not generated:

    a gorgeous, witty film

    True or false: The reviewer liked the film.
    Answer: true
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.answers.call import Call
from app.answers.generating.labels import LabelScorer, LabelScores
from app.answers.targets import Target
from app.engine.async_engine import all_of
from app.errors import InvalidInput, naming
from app.model.layout import Template

TEMPLATE = Template("{input}\nAnswer: {target}")


@dataclass(frozen=True)
class Question:
    """A question about a text, and the answers to choose from.

    Attributes:
        title: above the list of answers; None if they are not listed.
        descriptions: of each answer; None for those that speak for themselves.

    Raises InvalidInput: two of the answers read the same.
    """

    instructions: str
    answers: tuple[str, ...]
    title: str | None = None
    descriptions: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.answers)) < len(self.answers):
            raise InvalidInput("two of the answers read the same", param="questions")

    @classmethod
    def predicate(cls, statement: str) -> Question:
        """Whether a statement is true."""
        return cls(f"True or false: {statement}", ("true", "false"))

    @classmethod
    def choice(cls, instructions: str, answers: Sequence[str], descriptions: Sequence[str | None]) -> Question:
        """Which of several."""
        return cls(instructions, tuple(answers), "Options", tuple(descriptions))

    @classmethod
    def scale(cls, instructions: str, answers: Sequence[str], descriptions: Sequence[str | None]) -> Question:
        """Where on a scale, given from the lowest level to the highest."""
        return cls(instructions, tuple(answers), "Scale, from lowest to highest", tuple(descriptions))

    def write(self, text: str) -> str:
        """The question about this text."""
        listed = "" if self.title is None else f"\n{self._list(self.title)}"
        return f"{text}\n\n{self.instructions}{listed}"

    def _list(self, title: str) -> str:
        """On one line if the answers speak for themselves, on a line each if they are described."""
        if not any(self.descriptions):
            return f"{title}: {', '.join(self.answers)}"
        pairs = zip(self.answers, self.descriptions, strict=True)
        return "\n".join([f"{title}:", *(f"- {answer}: {text}" if text else f"- {answer}" for answer, text in pairs)])


async def answer_questions(
    scorer: LabelScorer, target: Target, text: str, questions: Sequence[Question], call: Call
) -> list[LabelScores]:
    """How likely each answer of each question is. Raises InvalidInput, with `param` naming the question at fault."""

    async def answer(index: int, question: Question) -> LabelScores:
        with naming(f"questions.{index}"):
            return await scorer.score_answers(target, TEMPLATE, question.write(text), question.answers, call)

    at_once = scorer.num_at_once(max(len(question.answers) for question in questions))
    return await all_of((answer(*numbered) for numbered in enumerate(questions)), at_once=at_once)
