"""TuneResult: what a tuning run found, ready to publish."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from app.measure.dataset import Example
from app.measure.evaluation import Evaluation
from app.measure.metrics import wilson_interval
from app.measure.promote import Promotion
from app.measure.release import Comparison, compare
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import TaskPrompt
from app.tuning.budget import MIN_VALIDATION_ROWS
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.events import Evaluated
from app.tuning.templates import WrittenPrompt


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


@dataclass(frozen=True, eq=False)
class WrittenResult:
    """The written prompt that tuning started from. Attributes: evaluation: on the examples of the result's own."""

    prompt: WrittenPrompt
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class TuneResult:
    """What to publish, and what is known about it.

    Attributes:
        prompt: the best state of the best member.
        initial: that member's rows before the first update, float32 on CPU.
        plan: as asked for.
        member: number of the best one.
        validation: of the prompt, with the label temperature fitted to the examples.
        measured_on: those examples: all of the plan's, or as many as there was time for.
        history: every measurement of every member, in order.
        best_step: updates done when the prompt was measured; 0 is the start.
        num_steps: updates done in all.
        stop_reason: "finished", "budget", "patience", "not finite" or "stopped".
        num_tokens_computed: by the backbone; a backward pass counts like a forward one.
        others: the next best members of the same run, if the search keeps more than one.
        written: the best of the written prompts, to compare with; None if there was none, or no time.
    """

    prompt: TaskPrompt
    initial: torch.Tensor
    plan: TuningPlan
    member: int
    validation: Evaluation
    measured_on: tuple[Example, ...]
    history: tuple[Evaluated, ...]
    best_step: int
    num_steps: int
    stop_reason: str
    num_tokens_computed: int
    others: tuple[TuneResult, ...] = ()
    written: WrittenResult | None = None

    @property
    def config(self) -> TuneConfig:
        """The best member's."""
        return self.plan.members[self.member]

    @property
    def distillation(self) -> DistillationReport | None:
        """None if there was no teacher."""
        plan = self.plan
        if plan.teacher is None:
            return None
        agreement = self.validation.metrics["accuracy" if plan.labels else "exact_match"]
        low, high = wilson_interval(agreement, len(self.measured_on))
        lengths = plan.teacher.num_virtual_tokens, self.prompt.num_virtual_tokens
        return DistillationReport(agreement, low, high, *lengths, self.num_tokens_computed)

    @property
    def _metric(self) -> str:
        """What it is compared by."""
        return self.plan.metric if self.plan.metric in self.validation.metrics else self.validation.main_metric

    @property
    def loses_to_written(self) -> bool:
        """Whether the written prompt that tuning started from does better."""
        metric = self._metric
        return self.written is not None and (self.written.evaluation.metrics[metric] > self.validation.metrics[metric])

    @property
    def comparison_in_words(self) -> str:
        """How it compares with the written prompt; empty if there was none."""
        if self.written is None:
            return ""
        metric = self._metric
        score = (
            f"the written prompt {self.written.prompt.text.strip()!r} has {metric} "
            f"{self.written.evaluation.metrics[metric]:.3f}"
        )
        if self.loses_to_written:
            return f"WARNING: {score} on the same examples and does better; try a longer --budget or more examples"
        return f"{score} on the same examples"

    @property
    def metrics(self) -> dict[str, float]:
        """Names to publish: the validation metrics, each with the prefix `validation_`."""
        return {f"validation_{name}": value for name, value in self.validation.metrics.items()}

    @property
    def curves(self) -> dict[int, list[tuple[int, float]]]:
        """Member to its measurements: updates done, value on validation."""
        curves: dict[int, list[tuple[int, float]]] = {number: [] for number in range(len(self.plan.members))}
        for event in self.history:
            curves[event.member].append((event.step, event.value))
        return curves

    @property
    def provenance(self) -> dict[str, Any]:
        """How the prompt came to be, in JSON's types."""
        known = {
            "method": self.plan.method,
            "config": self.config.record(),
            "search": self.plan.search.record(self.plan.config),
            "num_members": len(self.plan.members),
            "data_hash": self.plan.data_hash,
            "num_train": len(self.plan.train),
            "num_validation": len(self.measured_on),
            "num_steps": self.num_steps,
            "best_step": self.best_step,
            "stop_reason": self.stop_reason,
            **self._written_provenance,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        if self.plan.teacher is not None and self.distillation is not None:
            known |= {"teacher": self.plan.teacher.digest, "distillation": self.distillation.as_dict()}
        return known

    @property
    def _written_provenance(self) -> dict[str, Any]:
        if self.written is None:
            return {}
        metric = self._metric
        asked = {"text": self.written.prompt.text, "template": self.written.prompt.template.text}
        figures = {**asked, metric: self.written.evaluation.metrics[metric]}
        return {"written_prompt": figures | {"num_examples": len(self.measured_on)}}

    def compare_with(self, registry: Registry, version: Version, alias: str) -> Promotion[Comparison | None]:
        """What decides whether an alias may move to the version that was made of this (`app.measure.release`)."""
        plan = self.plan
        teacher = plan.teacher.digest if plan.teacher else None
        is_too_few = len(self.measured_on) < min(MIN_VALIDATION_ROWS, len(plan.validation))
        return compare(
            registry,
            version,
            alias,
            self.validation,
            self.measured_on,
            metric=plan.metric,
            teacher=teacher,
            is_too_few=is_too_few,
        )

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
