"""TuningJobs: from what a job was asked to do to a run that does it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.jobs.attempt import ProgressLog
from app.jobs.event_log import JobEvent
from app.jobs.files import UploadStore
from app.jobs.job import Job
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.registry import Registry
from app.task_prompt import TaskPrompt
from app.tuning.config import AXES, DEFAULT_PATIENCE, TuneConfig
from app.tuning.distillation import DistillationPlan
from app.tuning.job.reporter import Reporter
from app.tuning.job.spec import JobSpec
from app.tuning.job.work import TuningWork
from app.tuning.plan import TuningPlan
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import LEARNING_RATES, Search

FIGURES: Final = ("step", "train_loss", "learning_rate", "member", "valid_accuracy", "valid_loss")
"""Columns of the file of a job's figures."""


class TuningJobs:
    """The kind of job that learns a prompt and publishes it.

    Args: slice_s: seconds a run may take the device for at a time; None sets no bound.
    """

    def __init__(self, backbone: Backbone, registry: Registry, files: UploadStore, *, slice_s: float | None) -> None:
        self._backbone = backbone
        self._registry = registry
        self._files = files
        self._slice_s = slice_s

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
        run = TuningRun(self._backbone, plan, state=saved, slice_s=self._slice_s, on_event=reporter.report)
        return TuningWork(self._backbone, self._registry, job.id, JobSpec.from_json(job.spec), run, reporter)

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
        train = self._files.load(spec.training_file, param="training_file")
        validation = None
        if spec.validation_file is not None:
            validation = self._files.load(spec.validation_file, param="validation_file")
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
        return dataclasses.replace(plan, search=make_search(spec, config, has_labels=bool(plan.labels)))

    def _plan_distillation(self, spec: JobSpec) -> DistillationPlan:
        inputs = self._files.load_inputs(spec.training_file, param="training_file")
        config, labels = make_config(spec), spec.labels or ()
        teacher = self._teacher(spec)
        ServedPrompt(teacher).input_room(self._backbone.max_model_len, 1)  # raises if it leaves none for a text
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
        token_ids = self._backbone.tokenizer(spec.teacher_text)["input_ids"]
        return TaskPrompt.from_text(spec.teacher_text, token_ids, self._backbone.fingerprint)

    def _prompt(self, version: str) -> TaskPrompt:
        return self._registry.prompt(self._registry.resolve(version))


def make_config(spec: JobSpec) -> TuneConfig:
    """Raises InvalidInput."""
    return TuneConfig(**{"patience": DEFAULT_PATIENCE, **spec.hyperparameters})


def make_search(spec: JobSpec, config: TuneConfig, *, has_labels: bool, **otherwise: Any) -> Search:
    """What was asked for, `otherwise`, and the default for the rest. Raises InvalidInput."""
    rates = tuple(rate * spec.learning_rate_multiplier for rate in LEARNING_RATES)
    plural_to_name = {axis.plural: axis.name for axis in AXES}
    asked = {plural_to_name.get(name, name): value for name, value in spec.search.items()}
    return Search.default(config, has_labels=has_labels, **{"learning_rate": rates, **otherwise, **asked})
