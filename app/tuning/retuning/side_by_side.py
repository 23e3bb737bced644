"""SideBySide: an old version and a new one on inputs that neither was tuned on, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.measure import metrics
from app.measure.evaluation import Evaluation


@dataclass(frozen=True)
class SideBySide:
    """Attributes:
    agreement: of a task with labels the share of inputs that both give the same label; of one that writes the mean
        ROUGE-L of the new answers against the old ones. None if the old version was not asked.
    num_inputs: that both answered.
    metric: what right answers are scored by.
    old, new: that score; None if it is not known.
    num_scored: inputs with a right answer.
    """

    agreement: float | None
    num_inputs: int
    metric: str
    old: float | None
    new: float | None
    num_scored: int

    @classmethod
    def make(
        cls,
        input_to_new: Mapping[str, str],
        input_to_old: Mapping[str, str],
        input_to_target: Mapping[str, str],
        labels: Sequence[str],
    ) -> SideBySide:
        """Of held-out inputs: what the new and the old version answer, and what is right."""
        shared = [text for text in input_to_new if text in input_to_old]
        scored = [text for text in input_to_new if text in input_to_target]
        compared = [text for text in scored if text in input_to_old]
        targets = [input_to_target[text] for text in scored]
        metric = metrics.names_of(labels, targets)[0]
        agreement = metrics.names_of(labels, [])[0]
        return cls(
            agreement=_score(agreement, input_to_new, input_to_old, shared, labels),
            num_inputs=len(shared),
            metric=metric,
            old=_score(metric, input_to_old, input_to_target, compared, labels),
            new=_score(metric, input_to_new, input_to_target, scored, labels),
            num_scored=len(scored),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def figures(self) -> dict[str, float]:
        """What a version publishes of it."""
        found = {} if self.agreement is None else {"validation_agreement": self.agreement}
        if self.new is None:
            return found
        found |= {f"validation_{self.metric}": self.new, "validation_num_examples": float(self.num_scored)}
        if self.metric == "accuracy":
            low, high = metrics.wilson_interval(self.new, self.num_scored)
            found |= {"validation_accuracy_low": low, "validation_accuracy_high": high}
        return found


def _score(
    metric: str,
    input_to_answer: Mapping[str, str],
    input_to_target: Mapping[str, str],
    inputs: Sequence[str],
    labels: Sequence[str],
) -> float | None:
    if not inputs:
        return None
    answers, targets = [input_to_answer[text] for text in inputs], [input_to_target[text] for text in inputs]
    if labels:
        return Evaluation.of_labels(answers, labels, targets).metrics[metric]
    return Evaluation.of_texts(answers, targets).metrics[metric]
