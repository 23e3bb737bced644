"""DistillationRun: a teacher answers, then a student learns, slice by slice; both phases can be saved."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Final

import torch

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.model.backbone import Backbone
from app.tuning.distillation.distillation import DistillationPlan, DistillationReport, plan_student, teach_in_slices
from app.tuning.plan import TeacherAnswers, TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import OnEvent, Taught, ignore_event
from app.tuning.run.population import Member
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState

NUM_INPUTS_AT_ONCE: Final = 64
"""Inputs after which the answers so far can be saved; a fixed number, so that a resumed run has the same batches."""
BATCH_SIZE: Final = 8
STUDENT: Final = "student."


class DistillationRun:
    """Used, saved and resumed like a TuningRun, bit for bit.

    Raises InvalidInput: the state of another run.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: DistillationPlan,
        *,
        state: RunState | None = None,
        slice_s: float | None = None,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._backbone = backbone
        self._plan = plan
        self._slice_s = slice_s
        self._on_event = on_event
        self._digest = plan.digest(backbone.fingerprint)
        self._inputs = [*plan.train, *plan.validation]
        self._answers: list[str] = []
        self._scores: list[torch.Tensor] = []
        self._student: TuningRun | None = None
        self._is_stopping = False
        self.can_save = False
        if state is not None:
            if state.record.get("assignment") != self._digest:
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
            return self._plan.config.num_steps(len(self._plan.train))
        return self._student.num_steps

    @property
    def plan(self) -> TuningPlan:
        """The student's; there is one once the teacher has answered."""
        assert self._student is not None, "the teacher has not answered yet"
        return self._student.plan

    @property
    def leader(self) -> Member | None:
        return self._student.leader if self._student else None

    @property
    def result(self) -> TuneResult:
        """The student's, with a report in its provenance."""
        assert self._student is not None, "the run is not done"
        result = self._student.result
        return replace(self._with_report(result), others=tuple(map(self._with_report, result.others)))

    @property
    def num_rows_at_once(self) -> int:
        """The student's."""
        assert self._student is not None, "the teacher has not answered yet"
        return self._student.num_rows_at_once

    def prepare(self) -> None:
        """Once the teacher has answered, encode for the student, which may take a while and needs no device.

        Raises what `plan_student` and TuningRun raise.
        """
        if self._student is None and len(self._answers) == len(self._inputs):
            self._on_event(Taught(len(self._inputs)))
            self._start_student(None)

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
        """End after the student's present update."""
        self._is_stopping = True
        if self._student is not None:
            self._student.stop()

    def state(self) -> RunState:
        """Of the answers so far, or of the student. Only while `can_save`."""
        student = self._student.state() if self._student else None
        tensors = {"scores": torch.cat(self._scores)} if self._scores else {}
        if student is not None:
            tensors |= {f"{STUDENT}{name}": tensor for name, tensor in student.tensors.items()}
        record = {
            "assignment": self._digest,
            "answers": self._answers,
            "student": None if student is None else student.record,
        }
        return RunState(record, tensors)

    def _with_report(self, result: TuneResult) -> TuneResult:
        teacher = self._plan.teacher
        report = DistillationReport.of(result, teacher)
        origin = {"method": "distillation", "teacher": teacher.digest, "distillation": report.as_dict()}
        return replace(result, origin=origin, note=report.in_words())

    def _restore(self, state: RunState) -> None:
        self._answers = list(state.record["answers"])
        self._scores = [state.tensors["scores"]] if "scores" in state.tensors else []
        if state.record["student"] is not None:
            self._start_student(RunState(state.record["student"], state.tensors_under(STUDENT)))

    def _teach(self) -> Generator[bool | None, None, None]:
        while len(self._answers) < len(self._inputs):
            begin = len(self._answers)
            inputs = self._inputs[begin : begin + NUM_INPUTS_AT_ONCE]
            answered = yield from teach_in_slices(self._backbone, self._plan, inputs, BATCH_SIZE)
            self._answers += [example.target for example in answered.examples]
            self._scores += [] if answered.scores is None else [answered.scores]
            yield True

    def _start_student(self, state: RunState | None) -> None:
        """Let the student start, or continue."""
        num_train = len(self._plan.train)
        examples = tuple(map(Example, self._inputs, self._answers))
        scores = torch.cat(self._scores) if self._scores else None
        train, validation = (
            TeacherAnswers(examples[part], None if scores is None else scores[part])
            for part in (slice(num_train), slice(num_train, None))
        )
        learned = plan_student(self._backbone, self._plan, train, validation)
        self._student = TuningRun(self._backbone, learned, state=state, slice_s=self._slice_s, on_event=self._on_event)
        if self._is_stopping:
            self._student.stop()
