"""TuneResult: what a tuning run found, ready to publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers

from app.measure.evaluation import Evaluation
from app.model.layout import Template
from app.registry.publication import Publication
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.events import Evaluated


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What to publish, and what is known about it.

    Attributes:
        prompt: the best state of the best member.
        initial: that member's rows before the first update, float32 on CPU.
        plan: as asked for.
        members: the configuration of each member.
        member: number of the best one.
        validation: of the prompt, on all validation examples, with the label temperature fitted to them.
        history: every measurement of every member, in order.
        best_step: updates done when the prompt was measured; 0 is the start.
        num_steps: updates done in all.
        stop_reason: "finished", "patience", "not finite" or "stopped".
        tuning_s: seconds on the device.
        num_tokens_computed: by the backbone; a backward pass counts like a forward one.
        origin: added to the provenance, or replacing parts of it: of a distillation its teacher and its report.
        note: the report in words.
        others: the next best members of the same run, if the search keeps more than one.
    """

    prompt: TaskPrompt
    initial: torch.Tensor
    plan: TuningPlan
    members: tuple[TuneConfig, ...]
    member: int
    validation: Evaluation
    history: tuple[Evaluated, ...]
    best_step: int
    num_steps: int
    stop_reason: str
    tuning_s: float
    num_tokens_computed: int
    origin: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    others: tuple[TuneResult, ...] = ()

    @property
    def config(self) -> TuneConfig:
        """The best member's."""
        return self.members[self.member]

    @property
    def template(self) -> Template:
        return self.plan.template

    @property
    def labels(self) -> tuple[str, ...]:
        return self.plan.labels

    @property
    def metrics(self) -> dict[str, float]:
        """Names to publish: the validation metrics, each with the prefix `validation_`."""
        return {f"validation_{name}": value for name, value in self.validation.metrics.items()}

    @property
    def curves(self) -> dict[int, list[tuple[int, float]]]:
        """Member to its measurements: updates done, value on validation."""
        curves: dict[int, list[tuple[int, float]]] = {number: [] for number in range(len(self.members))}
        for event in self.history:
            curves[event.member].append((event.step, event.value))
        return curves

    @property
    def provenance(self) -> dict[str, Any]:
        """How the prompt came to be, in JSON's types."""
        return {
            "method": "prompt_tuning",
            "config": asdict(self.config),
            "search": self.plan.search.record(self.plan.config),
            "num_members": len(self.members),
            "data_hash": self.plan.data_hash,
            "num_train": len(self.plan.train),
            "num_validation": len(self.plan.validation),
            "num_steps": self.num_steps,
            "best_step": self.best_step,
            "stop_reason": self.stop_reason,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **self.origin,
        }

    def publication(self, description: str = "") -> Publication:
        stated = ("config", "data_hash")  # in fields of their own
        return self.plan.publication(
            self.prompt,
            self.config,
            initial=self.initial,
            label_temperature=self.validation.label_temperature,
            metrics=self.metrics,
            provenance={name: value for name, value in self.provenance.items() if name not in stated},
            description=description,
        )
