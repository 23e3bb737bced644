"""Planner: from what a job was asked to do to a run that does it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from app.jobs.job import JobSpec
from app.model.layout import Template
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import DEFAULT_PATIENCE, Init, Loss, Metric, OptimizerKind, Schedule, TuneConfig
from app.tuning.distillation.distillation_run import DistillationPlan, DistillationRun
from app.tuning.plan import TuningPlan
from app.tuning.run.run import TuningRun
from app.tuning.run.run_state import RunState
from app.tuning.search import LEARNING_RATES, Search

if TYPE_CHECKING:
    from app.jobs.files import UploadStore
    from app.model.backbone import Backbone
    from app.registry.registry import Registry
    from app.tuning.run.events import OnEvent

_ENUMS = {
    "kind": PromptKind,
    "init": Init,
    "optimizer": OptimizerKind,
    "schedule": Schedule,
    "loss": Loss,
    "metric": Metric,
}


class Planner:
    """Args: slice_s: seconds a run may take the device for at a time; None sets no bound."""

    def __init__(self, backbone: Backbone, registry: Registry, files: UploadStore, *, slice_s: float | None) -> None:
        self._backbone = backbone
        self._registry = registry
        self._files = files
        self._slice_s = slice_s

    def plan(self, spec: JobSpec) -> TuningPlan | DistillationPlan:
        """Reads the files again and checks everything that can be checked without the device.

        Raises:
            NoSuchFile, NotFound: a file or the version to go on from is gone.
            InvalidInput: a file, a label, or a hyperparameter that cannot be; the message names it.
            CorruptState, CorruptPrompt: what is stored is damaged.
        """
        return self._assign(spec) if spec.has_teacher else self._plan(spec)

    def _plan(self, spec: JobSpec) -> TuningPlan:
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
            init_prompt=self._init_prompt(spec),
        )
        return dataclasses.replace(plan, search=make_search(spec, config, has_labels=bool(plan.labels)))

    def _assign(self, spec: JobSpec) -> DistillationPlan:
        inputs = self._files.load_inputs(spec.training_file, param="training_file")
        config, labels = make_config(spec), spec.labels or ()
        assignment = DistillationPlan.make(
            self._teacher(spec),
            inputs,
            config,
            make_search(spec, config, has_labels=bool(labels), nums_virtual_tokens=(config.num_virtual_tokens,)),
            template=Template() if spec.template is None else Template(spec.template),
            labels=labels,
        )
        assignment.require_room(self._backbone)
        return assignment

    def _teacher(self, spec: JobSpec) -> TaskPrompt:
        if spec.teacher_version is not None:
            return self._registry.prompt(self._registry.resolve(spec.teacher_version))
        assert spec.teacher_text is not None
        token_ids = self._backbone.tokenizer(spec.teacher_text)["input_ids"]
        return TaskPrompt.from_text(spec.teacher_text, token_ids, self._backbone.fingerprint)

    def start(
        self, plan: TuningPlan | DistillationPlan, state: bytes | None, on_event: OnEvent
    ) -> TuningRun | DistillationRun:
        """Args: state: what the run goes on from. Raises InvalidInput, CorruptPrompt."""
        saved = None if state is None else RunState.from_bytes(state)
        if isinstance(plan, DistillationPlan):
            return DistillationRun(self._backbone, plan, state=saved, slice_s=self._slice_s, on_event=on_event)
        return TuningRun(self._backbone, plan, state=saved, slice_s=self._slice_s, on_event=on_event)

    def _init_prompt(self, spec: JobSpec) -> TaskPrompt | None:
        if spec.init_version is None:
            return None
        return self._registry.prompt(self._registry.resolve(spec.init_version))


def make_config(spec: JobSpec) -> TuneConfig:
    """Raises InvalidInput."""
    asked = {name: _typed(name, value) for name, value in spec.hyperparameters.items()}
    return TuneConfig(**{"patience": DEFAULT_PATIENCE, **asked})


def make_search(spec: JobSpec, config: TuneConfig, *, has_labels: bool, **otherwise: Any) -> Search:
    """What was asked for, `otherwise`, and for the rest the default. Raises InvalidInput."""
    asked = otherwise | {name: _typed_values(name, value) for name, value in spec.search.items()}
    rates = tuple(rate * spec.learning_rate_multiplier for rate in LEARNING_RATES)
    return Search.default(config, has_labels=has_labels, **{"learning_rates": rates, **asked})


def _typed_values(name: str, value: Any) -> Any:
    return tuple(_typed(name.removesuffix("s"), each) for each in value) if isinstance(value, list) else value


def _typed(name: str, value: Any) -> Any:
    return _ENUMS[name](value) if name in _ENUMS else value
