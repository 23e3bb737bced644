"""TuningPlan: what a tuning run is asked for, complete and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, hash_examples, pack_examples, split_examples
from app.measure.metrics import is_entity_list
from app.measure.reading.columns import Columns
from app.measure.reading.labels import settle
from app.measure.reading.look import DataLook
from app.model.layout import Template
from app.registry.kept.examples import TunedOn
from app.registry.publication import Publication
from app.task_prompt import TaskPrompt
from app.tuning.config import Metric, TuneConfig
from app.tuning.search import Search
from app.tuning.templates import WrittenPrompt, default_template

LABEL_METRICS = (Metric.ACCURACY, Metric.MACRO_F1)
WRITTEN_METRICS = (Metric.EXACT_MATCH, Metric.TOKEN_F1, Metric.ROUGE_L, Metric.ENTITY_F1)
"""Of answers that must be written before they can be judged."""


@dataclass(frozen=True, eq=False)
class TuningPlan:
    """Attributes:
    train, validation: what is learned from, and what the best state is chosen by.
    template: how an input becomes text.
    labels: every target is one of them; empty for a task that writes text.
    config: what all members share.
    search: what they differ in. With a budget: what was asked for; the run tries as many candidates as it has time
        for.
    init_prompt: belongs to init "prompt".
    teacher: whose answers the targets are (see `distillation`); None if they are given.
    teacher_scores: (num_train, num_labels) float32, log P(label | teacher, text), learned instead of the targets.
    columns: of the training file, from whose names templates and written prompts are made; None if it has none.
    written: prompts that a run with a budget may start from; the template of the best becomes the plan's.
    look: what the files hold, for people; None if the examples are from elsewhere.
    skip_special_tokens: whether they are left out of what the task writes; no, if targets have some.
    """

    train: tuple[Example, ...] = field(repr=False)
    validation: tuple[Example, ...] = field(repr=False)
    template: Template
    labels: tuple[str, ...]
    config: TuneConfig
    search: Search
    init_prompt: TaskPrompt | None = None
    teacher: TaskPrompt | None = None
    teacher_scores: torch.Tensor | None = None
    columns: Columns | None = None
    written: tuple[WrittenPrompt, ...] = ()
    look: DataLook | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _ = self.members  # raises if a member could not be configured
        for name, examples in (("train", self.train), ("validation", self.validation)):
            if not examples:
                raise InvalidInput(f"{name} has no examples", param=name)
            if self.labels:
                Dataset(name, examples).require_labels(self.labels)
        self._check_metric()

    @classmethod
    def make(
        cls,
        train: Dataset,
        validation: Dataset | None,
        config: TuneConfig,
        search: Search | None = None,
        *,
        template: Template | None = None,
        labels: Sequence[str] | None = None,
        init_prompt: TaskPrompt | None = None,
    ) -> TuningPlan:
        """Args:
            validation: None sets 10 % of the training examples aside, by a hash of their inputs.
            search: None trains the one member that `config` describes.
            template: None makes one of the names of the file's columns (`default_template`). A system message that all
                examples have becomes its beginning.
            labels: None finds them in the targets (`settle`), without the rows of the rare ones; empty makes it a task
                that writes text.

        Raises InvalidInput, with file and line where it is about an example.
        """
        data = settle(train, validation, labels)
        if data.validation is None:
            learned, held_out = split_examples(data.train.examples)
        else:
            learned, held_out = list(data.train.examples), list(data.validation.examples)
        return cls(
            train=tuple(learned),
            validation=tuple(held_out),
            template=(template or default_template(train.columns, data.labels)).after_system(train.system),
            labels=data.labels,
            config=config,
            search=search or Search(),
            init_prompt=init_prompt,
            columns=train.columns,
            look=DataLook.of(data),
        )

    @property
    def members(self) -> tuple[TuneConfig, ...]:
        return self.search.members(self.config)

    @property
    def served_template(self) -> Template:
        """As versions have it."""
        return self.limit_inputs(self.template)

    def limit_inputs(self, template: Template) -> Template:
        """With which inputs are cut as they were for tuning."""
        return replace(template, max_input_tokens=self.config.max_input_tokens or template.max_input_tokens)

    @property
    def metric(self) -> Metric:
        """By which states are chosen; never AUTO."""
        if self.config.metric is not Metric.AUTO:
            return self.config.metric
        return Metric.ACCURACY if self.labels else Metric.LOSS

    def _check_metric(self) -> None:
        allowed = (Metric.LOSS, *(LABEL_METRICS if self.labels else WRITTEN_METRICS))
        if self.metric not in allowed:
            what = "a task with labels" if self.labels else "a task that writes text"
            raise InvalidInput(f"{what} is chosen by {', '.join(allowed)}", param="metric")
        if self.metric is Metric.ENTITY_F1 and not is_entity_list([example.target for example in self.validation]):
            raise InvalidInput('entity_f1 reads targets such as "type = name; type = name"', param="metric")

    def publication(self, prompt: TaskPrompt, config: TuneConfig | None = None, **known: Any) -> Publication:
        """Of a tuned prompt; a task that writes gets room for its longest target by default.

        Args: config: a member's; None takes what all share. known: other fields of Publication.
        """
        config = config or self.config
        return Publication(
            prompt,
            template=self.served_template,
            labels=self.labels,
            sampling={} if self.labels else self._sampling(config),
            data_sha256=self.data_hash,
            tuning=config.record(),
            **known,
        )

    def _sampling(self, config: TuneConfig) -> dict[str, Any]:
        kept = {} if self.skip_special_tokens else {"skip_special_tokens": False}
        return {"temperature": 0.0, "max_tokens": config.max_target_tokens, **kept}

    @property
    def method(self) -> str:
        """How its versions came to be, as their provenance says it."""
        return "distillation" if self.teacher else "prompt_tuning"

    @property
    def data_hash(self) -> str:
        """sha256 over training and validation examples."""
        return hash_examples([*self.train, *self.validation])

    @property
    def tuned_on(self) -> TunedOn:
        """The examples, as a task keeps them."""
        return TunedOn(pack_examples(self.train), pack_examples(self.validation))

    def digest(self, backbone_fingerprint: str) -> str:
        """sha256 of everything that decides how a run goes: a saved state belongs to one of these."""
        parts = [
            backbone_fingerprint,
            self.template.text,
            self.labels,
            self.config.record(),
            self.search.record(self.config),
            self.init_prompt.digest if self.init_prompt else None,
            hash_examples(self.train),
            hash_examples(self.validation),
            self._digest_teacher() if self.teacher else None,
            *([written.text, written.template.text] for written in self.written),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _digest_teacher(self) -> str:
        scores = b"" if self.teacher_scores is None else self.teacher_scores.numpy().tobytes()
        return hashlib.sha256(hash_examples(self.train).encode() + scores).hexdigest()
