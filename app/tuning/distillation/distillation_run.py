"""DistillationRun: a teacher answers, then a student learns, slice by slice; it can be saved in both halves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch

from app.errors import InvalidInput
from app.measure.dataset import Example, split_examples
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.distillation.distillation import DistillationReport, plan_distillation, teach_in_slices
from app.tuning.plan import TeacherAnswers, TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import OnEvent, Taught, ignore_event
from app.tuning.run.population import Member
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import Search

NUM_INPUTS_AT_ONCE: Final = 64
"""Inputs after which the answers so far can be saved; a fixed number, so that a resumed run has the same batches."""
BATCH_SIZE: Final = 8
STUDENT: Final = "student."


@dataclass(frozen=True, eq=False)
class DistillationPlan:
    """What a student shall learn from whom.

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
        self.search.members(self.config)  # raises where a member could not be configured

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


class DistillationRun:
    """Used as a TuningRun is, and saved and resumed as one is, bit for bit.

    Raises InvalidInput: the state of another run.
    """

    def __init__(
        self,
        backbone: Backbone,
        assignment: DistillationPlan,
        *,
        state: RunState | None = None,
        slice_s: float | None = None,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._backbone = backbone
        self._assignment = assignment
        self._slice_s = slice_s
        self._on_event = on_event
        self._digest = assignment.digest(backbone.fingerprint)
        self._inputs = [*assignment.train, *assignment.validation]
        self._answers: list[str] = []
        self._scores: list[torch.Tensor] = []
        self._student: TuningRun | None = None
        self._is_stopping = False
        self.can_save = False
        if state is not None:
            if state.books.get("assignment") != self._digest:
                raise InvalidInput("the saved state belongs to another run", param="state")
            self._restore(state)
        self._teaching = self._teach()

    @property
    def step(self) -> int:
        """Updates of the student; 0 while the teacher answers."""
        return self._student.step if self._student else 0

    @property
    def num_steps(self) -> int:
        if self._student is None:
            return self._assignment.config.num_steps(len(self._assignment.train))
        return self._student.num_steps

    @property
    def plan(self) -> TuningPlan:
        """The student's, which there is once the teacher has answered."""
        assert self._student is not None, "the teacher has not answered yet"
        return self._student.plan

    @property
    def leader(self) -> Member | None:
        return self._student.leader if self._student else None

    @property
    def result(self) -> TuneResult:
        """The student's, and in its provenance what it is worth."""
        assert self._student is not None, "the run is not done"
        result = self._student.result
        return replace(self._with_worth(result), others=tuple(map(self._with_worth, result.others)))

    @property
    def num_rows_at_once(self) -> int:
        """The student's."""
        assert self._student is not None, "the teacher has not answered yet"
        return self._student.num_rows_at_once

    def prepare(self) -> None:
        """Once the teacher has answered, encode for the student, which may take long and needs no device.

        Raises what `plan_distillation` and TuningRun raise.
        """
        if self._student is None and len(self._answers) == len(self._inputs):
            self._on_event(Taught(len(self._inputs)))
            self._begin(None)

    def advance(self) -> None:
        """Compute one slice. Raises what `teach_in_slices` and `TuningRun.advance` raise."""
        if self._student is None:
            self.can_save = next(self._teaching) or False
        else:
            self._student.advance()
            self.can_save = self._student.can_save

    @property
    def is_done(self) -> bool:
        return self._student is not None and self._student.is_done

    def stop(self) -> None:
        """End after the present update of the student."""
        self._is_stopping = True
        if self._student is not None:
            self._student.stop()

    def state(self) -> RunState:
        """Of the answers so far, or of the student. Only while `can_save`."""
        student = self._student.state() if self._student else None
        tensors = {"scores": torch.cat(self._scores)} if self._scores else {}
        if student is not None:
            tensors |= {f"{STUDENT}{name}": tensor for name, tensor in student.tensors.items()}
        books = {
            "assignment": self._digest,
            "answers": self._answers,
            "student": None if student is None else student.books,
        }
        return RunState(books, tensors)

    def _with_worth(self, result: TuneResult) -> TuneResult:
        teacher = self._assignment.teacher
        report = DistillationReport.of(result, teacher)
        origin = {"method": "distillation", "teacher": teacher.digest, "distillation": report.as_dict()}
        return replace(result, origin=origin, note=report.in_words())

    def _restore(self, state: RunState) -> None:
        self._answers = list(state.books["answers"])
        self._scores = [state.tensors["scores"]] if "scores" in state.tensors else []
        if state.books["student"] is not None:
            self._begin(RunState(state.books["student"], state.tensors_under(STUDENT)))

    def _teach(self) -> Generator[bool | None, None, None]:
        while len(self._answers) < len(self._inputs):
            begin = len(self._answers)
            lesson = yield from teach_in_slices(
                self._backbone,
                self._assignment.teacher,
                self._assignment.template,
                self._assignment.labels,
                self._inputs[begin : begin + NUM_INPUTS_AT_ONCE],
                max_new_tokens=self._assignment.config.max_target_tokens,
                batch_size=BATCH_SIZE,
            )
            self._answers += [example.target for example in lesson.examples]
            self._scores += [] if lesson.scores is None else [lesson.scores]
            yield True

    def _begin(self, state: RunState | None) -> None:
        """Let the student start, or go on."""
        assignment = self._assignment
        num_train = len(assignment.train)
        examples = tuple(map(Example, self._inputs, self._answers))
        scores = torch.cat(self._scores) if self._scores else None
        train, validation = (
            TeacherAnswers(examples[part], None if scores is None else scores[part])
            for part in (slice(num_train), slice(num_train, None))
        )
        plan = plan_distillation(
            self._backbone,
            train,
            validation,
            assignment.config,
            assignment.search,
            template=assignment.template,
            labels=assignment.labels,
        )
        self._student = TuningRun(self._backbone, plan, state=state, slice_s=self._slice_s, on_event=self._on_event)
        if self._is_stopping:
            self._student.stop()
