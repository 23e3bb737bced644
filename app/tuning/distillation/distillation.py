"""Distillation: a written prompt's answers, learned by a short soft prompt (Hinton et al. 2015; Snell et al. 2022).

A long instruction with examples costs its tokens in every request. The teacher answers unlabeled inputs; the student,
some tens of virtual tokens, learns to answer alike: of a labeled task it matches how likely each label is
(Kullback-Leibler divergence), of one that writes it learns what the teacher writes, likeliest token first (Kim and Rush
2016, section 3.2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.engine.threads.device_lease import Slices
from app.errors import InvalidInput
from app.measure.dataset import Example, split_examples
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


@dataclass(frozen=True, eq=False)
class DistillationPlan:
    """What a student learns from which teacher.

    Attributes:
        teacher: of any kind; usually a long text.
        train, validation: inputs, none of them twice.
        template, labels: of teacher and student alike; no labels for a task that writes.
    """

    teacher: TaskPrompt
    train: tuple[str, ...]
    validation: tuple[str, ...]
    template: Template
    labels: tuple[str, ...]
    config: TuneConfig
    search: Search

    def __post_init__(self) -> None:
        self.search.members(self.config)  # raises if a member could not be configured

    @classmethod
    def make(
        cls,
        teacher: TaskPrompt,
        inputs: Sequence[str],
        config: TuneConfig,
        search: Search,
        *,
        template: Template,
        labels: Sequence[str],
    ) -> DistillationPlan:
        """A tenth of the inputs, chosen by a hash, is held out. Raises InvalidInput: there are too few."""
        parts = split_examples([Example(text, "") for text in dict.fromkeys(inputs)])
        train, validation = (tuple(example.input for example in part) for part in parts)
        return cls(teacher, train, validation, template, tuple(labels), config, search)

    def require_room(self, backbone: Backbone) -> None:
        """Raises InvalidInput: the teacher leaves no room for a text."""
        ServedPrompt(self.teacher).input_room(backbone.max_model_len, 1)

    def digest(self, backbone_fingerprint: str) -> str:
        """sha256 of everything that decides how a run goes."""
        parts = [
            backbone_fingerprint,
            self.teacher.digest,
            self.train,
            self.validation,
            self.template.text,
            self.labels,
            asdict(self.config),
            self.search.record(self.config),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def teach_in_slices(
    backbone: Backbone, plan: DistillationPlan, inputs: Sequence[str], batch_size: int = 32
) -> Slices[TeacherAnswers]:
    """What the plan's teacher answers to some inputs.

    Raises InvalidInput: no inputs, or a teacher that leaves no room for them.
    """
    if not inputs:
        raise InvalidInput("there are no inputs to learn from", param="inputs")
    served = ServedPrompt(plan.teacher, plan.template, plan.labels, max_new_tokens=plan.config.max_target_tokens)
    model = PlainModel(backbone, batch_size)
    if not plan.labels:
        written = yield from model.generate(served, inputs)
        return TeacherAnswers(tuple(map(Example, inputs, written)))
    scores = yield from model.score(served, inputs)
    answers = [plan.labels[i] for i in scores.argmax(dim=1).tolist()]
    return TeacherAnswers(tuple(map(Example, inputs, answers)), scores)


def plan_student(
    backbone: Backbone, plan: DistillationPlan, train: TeacherAnswers, validation: TeacherAnswers
) -> TuningPlan:
    """Learns what the teacher said; inputs it answered with nothing, or without an end, are left out.

    Raises InvalidInput: those are all.
    """
    most = plan.config.max_target_tokens - (backbone.tokenizer.eos_token_id is not None)

    def is_complete(answer: str) -> bool:
        length = len(plan.template.encode_target(backbone.tokenizer, answer))
        return bool(answer) and (bool(plan.labels) or length <= most)

    learned, measured = (_select(answers, is_complete) for answers in (train, validation))
    return TuningPlan(
        train=learned.examples,
        validation=measured.examples,
        template=plan.template,
        labels=plan.labels,
        config=plan.config,
        search=plan.search,
        teacher_answers=learned,
    )


def _select(answers: TeacherAnswers, is_complete: Callable[[str], bool]) -> TeacherAnswers:
    kept = [i for i, example in enumerate(answers.examples) if is_complete(example.target)]
    if not kept:
        raise InvalidInput("the teacher's answers are empty, or longer than max_target_tokens", param="prompt")
    scores = None if answers.scores is None else answers.scores[kept]
    return TeacherAnswers(tuple(answers.examples[i] for i in kept), scores)


@dataclass(frozen=True)
class DistillationReport:
    """How a distilled prompt compares with its teacher.

    Attributes:
        agreement, agreement_low, agreement_high: share of held-out answers that equal the teacher's, with 95 %.
        num_teacher_tokens, num_virtual_tokens: of the prompt of every request, before and after.
        num_tuning_tokens: computed by the backbone for the tuning; a backward pass counts like a forward one.
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
        """Requests that save what tuning took, if each computes the teacher's tokens; None if it is never saved."""
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
                f"{self.num_requests_to_break_even:,} requests save if each computes the teacher's tokens"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "num_tokens_saved": self.num_tokens_saved,
            "num_requests_to_break_even": self.num_requests_to_break_even,
        }
