"""TuningJobs: from what a job was asked to do (JobSpec) to a run that does it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from app.jobs.attempt import ProgressLog
from app.jobs.event_log import JobEvent
from app.jobs.files import UploadStore
from app.jobs.job import Job
from app.measure.reading.labels import TaskData
from app.measure.reading.look import DataLook
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.registry import Registry
from app.task_prompt import TaskPrompt
from app.tuning.candidates import with_written
from app.tuning.config import AXES, DEFAULT_PATIENCE, TuneConfig
from app.tuning.distillation import DistillationPlan, write_teacher
from app.tuning.job.reporter import Reporter
from app.tuning.job.work import TuningWork
from app.tuning.plan import TuningPlan
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import LEARNING_RATES, Search

FIGURES: Final = ("step", "train_loss", "learning_rate", "member", "valid_accuracy", "valid_loss")
"""Columns of the file of a job's figures."""


@dataclass(frozen=True)
class JobSpec:
    """In JSON's types, fixed when the job is created. Records of every earlier version are read, so fields stay.

    Attributes:
        task, alias: where the result is published, and the alias to move to it; None moves none.
        model: as asked for: the backbone's name, or what `init_version` was found by.
        init_version: pinned id of the version that tuning continues from.
        training_file, validation_file: ids of uploads.
        input_field, target_field: names of their fields; None finds them.
        template, labels: None leaves them to the tuner.
        hyperparameters: fields of TuneConfig that were asked for.
        search: fields of Search that were asked for.
        learning_rate_multiplier: of the learning rates that are tried if none was asked for.
        method: OpenAI's `method` object, as it is shown again.
        seed: of the request; also in `search`.
        teacher_text: a written prompt to distill; the training file then holds inputs.
        teacher_version: or pinned id of a version to distill.
        keep_examples: whether the task keeps what its versions were tuned on.
        metadata: the caller's own.
        promote: moves the alias also to a version that scores lower than the one it means.
        keep_checkpoints: None leaves it to the server.
        data: what the files hold, as it was found when the job was created (`DataLook`).
        backbone: fingerprint of the one that it tunes for; None in records that are older than this field.
    """

    task: str
    alias: str | None
    model: str
    training_file: str
    method: Mapping[str, Any]
    validation_file: str | None = None
    init_version: str | None = None
    template: str | None = None
    labels: tuple[str, ...] | None = None
    description: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_multiplier: float = 1.0
    seed: int = 0
    teacher_text: str | None = None
    teacher_version: str | None = None
    keep_examples: bool = False
    metadata: Mapping[str, str] | None = None
    promote: bool = False
    keep_checkpoints: int | None = None
    input_field: str | None = None
    target_field: str | None = None
    data: Mapping[str, Any] | None = None
    backbone: str | None = None

    @property
    def has_teacher(self) -> bool:
        return self.teacher_text is not None or self.teacher_version is not None

    @property
    def file_ids(self) -> tuple[str, ...]:
        """Of the uploads it needs."""
        return (self.training_file,) if self.validation_file is None else (self.training_file, self.validation_file)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JobSpec:
        labels = fields["labels"]
        return cls(**{**fields, "labels": None if labels is None else tuple(labels)})


@dataclass(frozen=True, eq=False)
class TuningJobs:
    """The kind of job that learns a prompt and publishes it.

    Attributes:
        slice_s: seconds a run may take the device for at a time; None sets no bound.
        keep_checkpoints: of a job that does not say how many.
    """

    backbone: Backbone
    registry: Registry
    files: UploadStore
    slice_s: float | None
    keep_checkpoints: int

    def complete(self, spec: JobSpec) -> JobSpec:
        """The job with the backbone and, if it asks for no number of updates, the default budget written down.

        Raises InvalidInput.
        """
        config = make_config(spec)
        budget_s = config.with_budget(self.backbone.device.type).budget_s
        more = {} if budget_s == config.budget_s else {"budget_s": budget_s}
        return replace(spec, backbone=self.backbone.fingerprint, hyperparameters={**spec.hyperparameters, **more})

    def reason_to_wait(self, spec: Mapping[str, Any]) -> str | None:
        asked = JobSpec.from_json(spec)
        if asked.backbone in (None, self.backbone.fingerprint):
            return None
        return f"it was created for {asked.model} and this server has {self.backbone.name}"

    def plan(self, spec: Mapping[str, Any]) -> TuningPlan | DistillationPlan:
        """Reads the files and checks everything that can be checked without the device.

        Raises:
            NoSuchFile, NotFound: a file or the version to continue from is gone.
            InvalidInput: an impossible file, label or hyperparameter; the message names it.
            CorruptState, CorruptPrompt: what is stored is damaged.
        """
        asked = JobSpec.from_json(spec)
        plan = self._plan_distillation(asked) if asked.has_teacher else self._plan_tuning(asked)
        for member in plan.search.members(plan.config):
            self.registry.require_room(member.num_virtual_tokens, plan.template, plan.labels)
        return plan

    def start(
        self, job: Job, plan: TuningPlan | DistillationPlan, state: bytes | None, progress: ProgressLog
    ) -> TuningWork:
        """Raises InvalidInput, CorruptPrompt."""
        saved = None if state is None else RunState.from_bytes(state)
        reporter = Reporter(progress)
        run = TuningRun(self.backbone, plan, state=saved, slice_s=self.slice_s, on_event=reporter.report)
        spec = JobSpec.from_json(job.spec)
        num_kept = spec.keep_checkpoints or self.keep_checkpoints
        return TuningWork(self.backbone, self.registry, job.id, spec, num_kept, plan, run, reporter)

    def names_needed(self, spec: Mapping[str, Any]) -> Collection[str]:
        """The version that tuning continues from, and the one that teaches."""
        asked = JobSpec.from_json(spec)
        return [name for name in (asked.init_version, asked.teacher_version) if name is not None]

    def write_figures(self, events: Sequence[JobEvent]) -> bytes:
        """CSV, one line for each update and for each measurement of a member; missing figures stay empty."""
        rows = [event.data for event in events if event.data is not None and "step" in event.data]
        rows.sort(key=lambda row: (row["step"], row.get("member", -1)))
        file = io.StringIO(newline="")
        table = csv.DictWriter(file, FIGURES, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return file.getvalue().encode()

    def _plan_tuning(self, spec: JobSpec) -> TuningPlan:
        fields = {"input_field": spec.input_field, "target_field": spec.target_field}
        train = self.files.load(spec.training_file, param="training_file", **fields)
        validation = None
        if spec.validation_file is not None:
            validation = self.files.load(spec.validation_file, param="validation_file", **fields)
        config = make_config(spec)
        plan = TuningPlan.make(
            train,
            validation,
            config,
            template=self._template(spec),
            labels=spec.labels,
            init_prompt=None if spec.init_version is None else self._prompt(spec.init_version),
        )
        plan = replace(plan, search=make_search(spec, config, has_labels=bool(plan.labels)))
        return with_written(plan, self.backbone.tokenizer, has_template=spec.template is not None)

    def _plan_distillation(self, spec: JobSpec) -> DistillationPlan:
        data = self.files.load_inputs(spec.training_file, param="training_file", input_field=spec.input_field)
        config, labels = make_config(spec), spec.labels or ()
        teacher, sampling = self._teacher(spec)
        ServedPrompt(teacher).input_room(self.backbone.max_model_len, 1)  # raises if it leaves none for a text
        return DistillationPlan.make(
            data.inputs,
            look=DataLook.of(TaskData(data, None, ())),
            teacher=teacher,
            template=(self._template(spec) or Template()).after_system(data.system),
            labels=labels,
            config=config,
            search=make_search(spec, config, has_labels=bool(labels), num_virtual_tokens=(config.num_virtual_tokens,)),
            sampling=sampling,
        )

    def _template(self, spec: JobSpec) -> Template | None:
        """As asked for, with all that belongs to it if it is that of a version which the job continues or distills."""
        if spec.template is None:
            return None
        names = (name for name in (spec.init_version, spec.teacher_version) if name is not None)
        own = (self.registry.resolve(name).template for name in names)
        return next((each for each in own if each and each.text == spec.template), Template(spec.template))

    def _teacher(self, spec: JobSpec) -> tuple[TaskPrompt, Mapping[str, Any]]:
        """The prompt, and its version's sampling defaults."""
        if spec.teacher_version is not None:
            version = self.registry.resolve(spec.teacher_version)
            return self.registry.prompt(version), version.sampling
        assert spec.teacher_text is not None
        return write_teacher(self.backbone, spec.teacher_text), {}

    def _prompt(self, version: str) -> TaskPrompt:
        return self.registry.prompt(self.registry.resolve(version))


def make_config(spec: JobSpec) -> TuneConfig:
    """Raises InvalidInput."""
    return TuneConfig(**{"patience": DEFAULT_PATIENCE, **spec.hyperparameters})


def make_search(spec: JobSpec, config: TuneConfig, *, has_labels: bool, **otherwise: Any) -> Search:
    """What was asked for, `otherwise`, and the default for the rest. Raises InvalidInput."""
    plural_to_name = {axis.plural: axis.name for axis in AXES}
    asked = {**otherwise, **{plural_to_name.get(name, name): value for name, value in spec.search.items()}}
    if config.budget_s:
        return Search.asked(asked, rate_factor=spec.learning_rate_multiplier)
    rates = tuple(rate * spec.learning_rate_multiplier for rate in LEARNING_RATES)
    return Search.default(config, has_labels=has_labels, **{"learning_rate": rates, **asked})
