"""TuningJobs: from what a job was asked to do (JobSpec) to a run that does it, and what becomes of it (TuningWork)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from app.engine.threads.device_lease import Lease, take_turns
from app.errors import NotFound, NumericalError, SoftswapError
from app.jobs.attempt import ProgressLog
from app.jobs.event_log import JobEvent
from app.jobs.files import UploadStore
from app.jobs.job import Job
from app.jobs.work import Candidate
from app.measure.plain_model import PlainModel
from app.measure.promote import run_with
from app.measure.release import Comparison, Release, release
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.kept.examples import TunedOn
from app.registry.publication import Publication
from app.registry.reference import name_together
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import TaskPrompt
from app.tuning.config import AXES, DEFAULT_PATIENCE, TuneConfig
from app.tuning.distillation import DistillationPlan, write_teacher
from app.tuning.job.reporter import Reporter
from app.tuning.plan import TuningPlan
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import LEARNING_RATES, Search
from app.tuning.templates import with_written

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

    Attributes: slice_s: seconds a run may take the device for at a time; None sets no bound.
    """

    backbone: Backbone
    registry: Registry
    files: UploadStore
    slice_s: float | None

    def with_budget(self, spec: JobSpec) -> JobSpec:
        """The job with the default budget written down, if it asks for no number of updates. Raises InvalidInput."""
        config = make_config(spec)
        budget_s = config.with_budget(self.backbone.device.type).budget_s
        if budget_s == config.budget_s:
            return spec
        return replace(spec, hyperparameters={**spec.hyperparameters, "budget_s": budget_s})

    def plan(self, spec: Mapping[str, Any]) -> TuningPlan | DistillationPlan:
        """Reads the files and checks everything that can be checked without the device.

        Raises:
            NoSuchFile, NotFound: a file or the version to continue from is gone.
            InvalidInput: an impossible file, label or hyperparameter; the message names it.
            CorruptState, CorruptPrompt: what is stored is damaged.
        """
        asked = JobSpec.from_json(spec)
        return self._plan_distillation(asked) if asked.has_teacher else self._plan_tuning(asked)

    def start(
        self, job: Job, plan: TuningPlan | DistillationPlan, state: bytes | None, progress: ProgressLog
    ) -> TuningWork:
        """Raises InvalidInput, CorruptPrompt."""
        saved = None if state is None else RunState.from_bytes(state)
        reporter = Reporter(progress)
        run = TuningRun(self.backbone, plan, state=saved, slice_s=self.slice_s, on_event=reporter.report)
        return TuningWork(self.backbone, self.registry, job.id, JobSpec.from_json(job.spec), plan, run, reporter)

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
        train = self.files.load(spec.training_file, param="training_file")
        validation = None
        if spec.validation_file is not None:
            validation = self.files.load(spec.validation_file, param="validation_file")
        for dataset in (train, validation):
            if dataset is not None and spec.labels:
                dataset.require_labels(spec.labels)
        config = make_config(spec)
        plan = TuningPlan.make(
            train,
            validation,
            config,
            template=None if spec.template is None else Template(spec.template),
            labels=spec.labels,
            init_prompt=None if spec.init_version is None else self._prompt(spec.init_version),
        )
        plan = replace(plan, search=make_search(spec, config, has_labels=bool(plan.labels)))
        return with_written(plan, self.backbone.tokenizer, has_template=spec.template is not None)

    def _plan_distillation(self, spec: JobSpec) -> DistillationPlan:
        inputs = self.files.load_inputs(spec.training_file, param="training_file")
        config, labels = make_config(spec), spec.labels or ()
        teacher = self._teacher(spec)
        ServedPrompt(teacher).input_room(self.backbone.max_model_len, 1)  # raises if it leaves none for a text
        return DistillationPlan.make(
            inputs,
            teacher=teacher,
            template=Template() if spec.template is None else Template(spec.template),
            labels=labels,
            config=config,
            search=make_search(spec, config, has_labels=bool(labels), num_virtual_tokens=(config.num_virtual_tokens,)),
        )

    def _teacher(self, spec: JobSpec) -> TaskPrompt:
        if spec.teacher_version is not None:
            return self._prompt(spec.teacher_version)
        assert spec.teacher_text is not None
        return write_teacher(self.backbone, spec.teacher_text)

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


@dataclass(eq=False)
class TuningWork:
    """See `app.jobs.work.Work`; a candidate's content is the prompt.

    The provenance of the versions says which job and step they are from.
    """

    backbone: Backbone
    registry: Registry
    job_id: str
    spec: JobSpec
    asked: TuningPlan | DistillationPlan
    run: TuningRun
    reporter: Reporter
    published: Sequence[Version] = ()
    comparison: Comparison | None = None
    released: Release | None = None

    def find_candidate(self, published_step: int) -> Candidate | None:
        leader = self.run.population.leader
        if leader is None or leader.best is None or leader.best.step <= published_step:
            return None
        best, prompt = leader.best, leader.best_prompt(self.backbone)
        return Candidate(best.step, best.score.metric, best.score.value, self.reporter.train_loss, prompt)

    def publish_checkpoint(self, candidate: Candidate) -> str:
        """A version without an alias."""
        origin = {"job": self.job_id, "checkpoint_step": candidate.step}
        publication = self.run.plan.publication(
            candidate.content,
            metrics={f"validation_{candidate.metric}": candidate.value},
            provenance={"method": self.run.plan.method},
            description=self.spec.description,
        )
        return self._publish_once(publication, origin).id

    @property
    def failure(self) -> SoftswapError | None:
        if self.run.result.stop_reason != "not finite":
            return None
        return NumericalError("tuning diverged: no member's loss is finite any more; try smaller learning rates")

    @property
    def best(self) -> Candidate:
        result = self.run.result
        is_best = (result.best_step, result.member)
        event = next(event for event in result.history if (event.step, event.member) == is_best)
        return Candidate(event.step, event.metric, event.value, self.reporter.train_loss, result.prompt)

    def publish_result(self) -> str:
        """The version that the job is for, and the others of its ensemble, still without an alias."""
        published = []
        for each in (self.run.result, *self.run.result.others):
            origin = {"job": self.job_id, "result_step": each.best_step, "result_member": each.member}
            published.append(self._publish_once(each.publication(self.spec.description), origin))
        self.published = published
        return published[0].id

    def measure_result(self, lease: Lease) -> None:
        """Turn by turn, what decides whether the job's alias, if it has one, may move to the version."""
        if self.spec.alias is not None:
            model = PlainModel(self.backbone, self.run.num_rows_at_once)
            comparing = self.run.result.compare_with(self.registry, self.published[0], self.spec.alias)
            self.comparison = run_with(lambda asked: take_turns(lease, model.evaluate(asked)), comparing)

    def release(self) -> str | None:
        """Move the job's alias to the version, if it may."""
        version, spec = self.published[0], self.spec
        self.released = release(self.registry, version, spec.alias, self.comparison, is_told=spec.promote)
        return None if self.released.is_moved else self.released.words or None

    @property
    def note(self) -> str:
        report = self.run.result.distillation
        notes = report.in_words().splitlines() if report else []
        if self.released is not None and self.released.is_moved and self.released.words:
            notes.append(self.released.words)
        if len(self.published) > 1:
            notes.append(f"{name_together(each.id for each in self.published)} answers as an ensemble")
        return "".join(f"; {note}" for note in notes)

    @cached_property
    def _examples(self) -> TunedOn | None:
        """What the task keeps: all examples of a plan that has them, of a distillation those the teacher answered."""
        plan = self.asked if isinstance(self.asked, TuningPlan) else self.run.plan
        return plan.tuned_on if self.spec.keep_examples else None

    def _publish_once(self, publication: Publication, origin: Mapping[str, Any]) -> Version:
        """Without an alias, or what an earlier attempt at this job published before it could record that."""
        try:
            versions = self.registry.versions(self.spec.task)
        except NotFound:
            versions = []
        for version in versions:
            if origin.items() <= version.provenance.items():
                return version
        traced = replace(publication, provenance={**publication.provenance, **origin}, examples=self._examples)
        return self.registry.publish(self.spec.task, traced, alias=None)
