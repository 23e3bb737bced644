"""Distillation: a written prompt's answers, learned by a short soft prompt (Hinton et al. 2015; Snell et al. 2022).

A long instruction with examples costs its tokens wherever it is sent. The teacher answers unlabelled inputs; the
student, some tens of virtual tokens, learns to answer alike: of a labelled task it matches how likely each label is
(Kullback-Leibler divergence), of one that writes it learns what the teacher writes, likeliest token first (Kim and Rush
2016, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.engine.threads.slices import Slices
from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.metrics import wilson_interval
from app.measure.plain_model import PlainModel
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.plan import TeacherAnswers, TuningPlan
from app.tuning.result import TuneResult
from app.tuning.search import Search


def teach_in_slices(
    backbone: Backbone,
    teacher: TaskPrompt,
    template: Template,
    labels: Sequence[str],
    inputs: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> Slices[TeacherAnswers]:
    """What the teacher answers to each input.

    Args:
        labels: of the task; empty where it writes.
        max_new_tokens: of a task that writes.

    Raises InvalidInput: no inputs, or a teacher that leaves no room for them.
    """
    if not inputs:
        raise InvalidInput("there are no inputs to learn from", param="inputs")
    served = ServedPrompt(teacher, template, labels, max_new_tokens=max_new_tokens)
    model = PlainModel(backbone, batch_size)
    if not labels:
        written = yield from model.generate(served, inputs)
        return TeacherAnswers(tuple(map(Example, inputs, written)))
    scores = yield from model.score(served, inputs)
    answers = [labels[i] for i in scores.argmax(dim=1).tolist()]
    return TeacherAnswers(tuple(map(Example, inputs, answers)), scores)


def plan_distillation(
    backbone: Backbone,
    train: TeacherAnswers,
    validation: TeacherAnswers,
    config: TuneConfig,
    search: Search,
    *,
    template: Template,
    labels: Sequence[str],
) -> TuningPlan:
    """A plan that learns what the teacher said; inputs it answered with nothing, or without an end, are left out.

    Raises InvalidInput: those are all.
    """
    most = config.max_target_tokens - (backbone.tokenizer.eos_token_id is not None)

    def is_lesson(answer: str) -> bool:
        return bool(answer) and (bool(labels) or len(template.encode_target(backbone.tokenizer, answer)) <= most)

    learned, measured = (_answered(lesson, is_lesson) for lesson in (train, validation))
    return TuningPlan(
        train=learned.examples,
        validation=measured.examples,
        template=template,
        labels=tuple(labels),
        config=config,
        search=search,
        lesson=learned,
    )


def _answered(lesson: TeacherAnswers, is_lesson: Callable[[str], bool]) -> TeacherAnswers:
    kept = [i for i, example in enumerate(lesson.examples) if is_lesson(example.target)]
    if not kept:
        raise InvalidInput("the teacher's answers are empty, or longer than max_target_tokens", param="prompt")
    scores = None if lesson.scores is None else lesson.scores[kept]
    return TeacherAnswers(tuple(lesson.examples[i] for i in kept), scores)


@dataclass(frozen=True)
class DistillationReport:
    """What a distilled prompt is worth.

    Attributes:
        agreement, agreement_low, agreement_high: share of held-out answers that are the teacher's, with 95 %.
        num_teacher_tokens, num_virtual_tokens: in front of every text, before and now.
        num_tuning_tokens: that the tuning put through the backbone, a backward counted like a forward.
    """

    agreement: float
    agreement_low: float
    agreement_high: float
    num_teacher_tokens: int
    num_virtual_tokens: int
    num_tuning_tokens: int

    @classmethod
    def of(cls, result: TuneResult, teacher: TaskPrompt) -> DistillationReport:
        agreement = result.validation.metrics["accuracy" if result.labels else "exact_match"]
        low, high = wilson_interval(agreement, len(result.plan.validation))
        return cls(
            agreement,
            low,
            high,
            teacher.num_virtual_tokens,
            result.prompt.num_virtual_tokens,
            result.num_tokens_computed,
        )

    @property
    def num_tokens_saved(self) -> int:
        """Of each request."""
        return self.num_teacher_tokens - self.num_virtual_tokens

    @property
    def num_requests_to_break_even(self) -> int | None:
        """Requests that save what tuning took, where the teacher is computed for each; None: there never are."""
        return -(-self.num_tuning_tokens // self.num_tokens_saved) if self.num_tokens_saved > 0 else None

    def in_words(self) -> str:
        """Two or three lines."""
        interval = f"[{self.agreement_low:.1%}, {self.agreement_high:.1%}]"
        saved = f"{self.num_teacher_tokens} tokens became {self.num_virtual_tokens}: {self.num_tokens_saved} saved"
        lines = [
            f"decides as the teacher does on {self.agreement:.1%} {interval} of the held-out inputs",
            f"{saved} in each request",
        ]
        if self.num_requests_to_break_even is not None:
            lines.append(
                f"tuning computed {self.num_tuning_tokens:,} tokens, as many as "
                f"{self.num_requests_to_break_even:,} requests save where the teacher is computed for each"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "num_tokens_saved": self.num_tokens_saved,
            "num_requests_to_break_even": self.num_requests_to_break_even,
        }
