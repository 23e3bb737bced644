"""Distillation: a written prompt's answers, learned by a short soft prompt (Hinton et al. 2015; Snell et al. 2022).

A long instruction with examples costs its tokens in every request. The teacher answers unlabeled inputs; the student,
some tens of virtual tokens, learns to answer alike: of a labeled task it matches how likely each label is
(Kullback-Leibler divergence), of one that writes it learns what the teacher writes, likeliest token first (Kim and Rush
2016, section 3.2).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from app.engine.threads.device_lease import Slices
from app.errors import InvalidInput
from app.measure.dataset import Example, split_examples
from app.measure.plain_model import PlainModel
from app.measure.reading.look import DataLook
from app.measure.served_prompt import ServedPrompt, of_a_text
from app.model.backbone import Backbone
from app.model.layout import Template, encode_text
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.run_state import RunState
from app.tuning.search import Search

NUM_INPUTS_AT_ONCE: Final = 64
"""Inputs after which the answers so far can be saved; a fixed number, so that a resumed run has the same batches."""
BATCH_SIZE: Final = 8
"""Of a forward; and inputs after which a teacher whose time ends can stop."""
MIN_ANSWERS: Final = 16
"""That even a teacher without time gives."""
STUDENT: Final = "student."


@dataclass(frozen=True, eq=False)
class DistillationPlan:
    """What a student learns from which teacher.

    Attributes:
        teacher: of any kind; usually a long text.
        train, validation: inputs, none of them twice.
        template, labels: of teacher and student alike; no labels for a task that writes.
        look: what the file holds, for people; None if the inputs are from elsewhere.
        sampling: defaults of the teacher's version: where its texts end, and what is left out of them.
    """

    teacher: TaskPrompt
    train: tuple[str, ...]
    validation: tuple[str, ...]
    template: Template
    labels: tuple[str, ...]
    config: TuneConfig
    search: Search
    look: DataLook | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.search.members(self.config)  # raises if a member could not be configured

    @classmethod
    def make(cls, inputs: Sequence[str], **asked: Any) -> DistillationPlan:
        """A tenth of the inputs, chosen by a hash, is held out.

        Args: asked: the other fields.

        Raises InvalidInput: there are too few.
        """
        parts = split_examples([Example(text, "") for text in dict.fromkeys(inputs)])
        train, validation = (tuple(example.input for example in part) for part in parts)
        return cls(train=train, validation=validation, **asked)

    def digest(self, backbone_fingerprint: str) -> str:
        """sha256 of everything that decides how a run goes."""
        inputs = (self.teacher.digest, self.train, self.validation)
        student = (self.template.text, self.labels, self.config.record(), self.search.record(self.config))
        ends = [of_a_text(self.sampling)] if of_a_text(self.sampling) else []
        return hashlib.sha256(json.dumps([backbone_fingerprint, *inputs, *student, *ends]).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class TeacherAnswers:
    """Attributes:
    examples: inputs, each with the teacher's answer.
    scores: (num_examples, num_labels) float32, log P(label | teacher, text); None if the task writes.
    """

    examples: tuple[Example, ...]
    scores: torch.Tensor | None = None

    def select(self, kept: Sequence[int]) -> TeacherAnswers:
        scores = None if self.scores is None else self.scores[list(kept)]
        return TeacherAnswers(tuple(self.examples[i] for i in kept), scores)


class Teaching:
    """The first half of a distillation: the teacher answers all inputs.

    Args:
        state: of an earlier run of the same plan, to continue from.
        ends_s: by `clock`, when it may stop with the answers so far; None: it answers all.

    Attributes: student_state: what it says of the second half; None if that had not started.

    Raises InvalidInput: the state of another run.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: DistillationPlan,
        state: RunState | None,
        *,
        ends_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backbone = backbone
        self._model = PlainModel(backbone, BATCH_SIZE)
        self._plan = plan
        self._digest = plan.digest(backbone.fingerprint)
        self._inputs = _interleaved(plan) if plan.config.budget_s else [*plan.train, *plan.validation]
        self._ends_s = math.inf if ends_s is None else ends_s
        self._num_at_once = NUM_INPUTS_AT_ONCE if ends_s is None else BATCH_SIZE
        self._clock = clock
        self._answers: list[str] = []
        self._scores: list[torch.Tensor] = []
        self.student_state: RunState | None = None
        if state is not None:
            self._restore(state)

    @property
    def num_answers(self) -> int:
        return len(self._answers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def is_done(self) -> bool:
        is_enough = self.num_answers >= MIN_ANSWERS and self._clock() >= self._ends_s
        return is_enough or self.num_answers == self.num_inputs

    def slices(self) -> Generator[bool | None, None, None]:
        """It yields True when it can be saved."""
        while not self.is_done:
            inputs = self._inputs[self.num_answers : self.num_answers + self._num_at_once]
            answered = yield from teach_in_slices(self._model, self._plan, inputs)
            self._answers += [example.target for example in answered.examples]
            self._scores += [] if answered.scores is None else [answered.scores]
            yield True

    def answers(self) -> tuple[TeacherAnswers, TeacherAnswers]:
        """Once it is done: to the inputs to learn from, and to those held out."""
        scores = torch.cat(self._scores) if self._scores else None
        answered = self._inputs[: self.num_answers]
        answers = TeacherAnswers(tuple(map(Example, answered, self._answers)), scores)
        held_out = set(self._plan.validation)
        learned, measured = (
            answers.select([i for i, text in enumerate(answered) if (text in held_out) is is_held_out])
            for is_held_out in (False, True)
        )
        return learned, measured

    def plan_student(self) -> TuningPlan:
        """Once it is done. Raises what `plan_student` raises."""
        return plan_student(self._backbone, self._plan, *self.answers())

    def state(self, student: RunState | None) -> RunState:
        """Of the answers so far, and of the student."""
        tensors = {"scores": torch.cat(self._scores)} if self._scores else {}
        if student is not None:
            tensors |= {f"{STUDENT}{name}": tensor for name, tensor in student.tensors.items()}
        record = {"assignment": self._digest, "answers": self._answers, "student": student and student.record}
        return RunState(record, tensors)

    def _restore(self, state: RunState) -> None:
        if state.record.get("assignment") != self._digest:
            raise InvalidInput("the saved state belongs to another run", param="state")
        self._answers = list(state.record["answers"])
        self._scores = [state.tensors["scores"]] if "scores" in state.tensors else []
        if state.record["student"] is not None:
            self.student_state = RunState(state.record["student"], state.tensors_under(STUDENT))


def write_teacher(backbone: Backbone, text: str) -> TaskPrompt:
    """A written prompt as a teacher. Raises InvalidInput: a token that the backbone does not embed."""
    token_ids = encode_text(backbone.tokenizer, text)
    backbone.require_embedded(token_ids, "the written prompt", param="prompt")
    return TaskPrompt.from_text(text, token_ids, backbone.fingerprint)


def _interleaved(plan: DistillationPlan) -> list[str]:
    """All inputs, one held out first and the others at equal distances: a teacher that is stopped has answered both."""
    num_train, num_held_out = len(plan.train), len(plan.validation)
    places = [((i + 0.5) / num_train, 1, text) for i, text in enumerate(plan.train)]
    places += [(i / num_held_out, 0, text) for i, text in enumerate(plan.validation)]
    return [text for _, _, text in sorted(places)]


def teach_in_slices(model: PlainModel, plan: DistillationPlan, inputs: Sequence[str]) -> Slices[TeacherAnswers]:
    """What the plan's teacher answers to some inputs. Raises InvalidInput: it leaves no room for them."""
    ends = {**of_a_text(plan.sampling), "max_new_tokens": plan.config.max_target_tokens}
    served = ServedPrompt(plan.teacher, plan.template, plan.labels, **ends)
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
    most = plan.config.max_target_tokens - len(backbone.taught_eos_ids)

    def is_complete(answer: str) -> bool:
        length = len(plan.template.encode_target(backbone.tokenizer, answer))
        return bool(answer) and (bool(plan.labels) or length <= most)

    learned, measured = (
        part.select([i for i, example in enumerate(part.examples) if is_complete(example.target)])
        for part in (train, validation)
    )
    if not (learned.examples and measured.examples):
        raise InvalidInput("the teacher's answers are empty, or longer than max_target_tokens", param="prompt")
    return TuningPlan(
        train=learned.examples,
        validation=measured.examples,
        template=plan.template,
        labels=plan.labels,
        config=plan.config,
        search=plan.search,
        teacher=plan.teacher,
        teacher_scores=learned.scores,
    )
