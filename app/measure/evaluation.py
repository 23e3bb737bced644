"""Evaluation: how well something answers examples whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from app.errors import InvalidInput, shorten
from app.measure import metrics
from app.measure.calibration import Calibration, fit_temperature
from app.measure.dataset import Example, find_stray
from app.measure.metrics import LabelScore
from app.measure.served_prompt import ServedPrompt
from app.registry.kept.evaluations import RecordedEvaluation

LOW_LABEL_MASS = 0.05
"""Below it, tuned tasks hardly ever stay: the answer is the least unlikely label."""


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    metrics: name to value. Tasks with labels have accuracy, accuracy_low, accuracy_high (95 %), macro_f1, label_mass
        (mean of the sum of all labels' probabilities), nll and ece (the calibration's); with a temperature other than 1
        also uncalibrated_nll and uncalibrated_ece, which are those at 1. Tasks that write have exact_match, token_f1,
        rouge_l, and entity_f1 if the targets are entity lists. Both have num_examples.
    predictions: in the order of the examples.
    labels: the task's; empty if it writes, and then so are the rest.
    confusion: counts, targets by predictions, in the order of `labels`.
    per_label: in that order.
    calibration: of the probabilities as they are served, with the version's temperature; a vote has none.
    """

    metrics: dict[str, float]
    predictions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    per_label: tuple[LabelScore, ...] = ()
    calibration: Calibration | None = None

    @classmethod
    def of_scores(
        cls, scores: npt.ArrayLike, labels: Sequence[str], targets: Sequence[str], *, temperature: float | None = 1.0
    ) -> Evaluation:
        """Of a task with labels.

        Args:
            scores: (num_examples, num_labels) log P(label | prompt, text), natural logarithm.
            targets: each one of the labels.
            temperature: of the probabilities; None fits it to these very examples.
        """
        values = np.asarray(scores, dtype=np.float64)
        right = [labels.index(target) for target in targets]
        answered = cls.of_labels([labels[i] for i in values.argmax(axis=1)], labels, targets)
        raw = Calibration.measure(values, right)
        tempered = Calibration.measure(values, right, temperature or fit_temperature(values, right))
        figures = {
            "label_mass": float(np.exp(logsumexp(values, axis=1)).mean()),
            "nll": tempered.nll,
            "ece": tempered.error,
        }
        if tempered.temperature != 1.0:
            figures |= {"uncalibrated_nll": raw.nll, "uncalibrated_ece": raw.error}
        return replace(answered, metrics=answered.metrics | figures, calibration=tempered)

    @classmethod
    def of_labels(cls, predictions: Sequence[str], labels: Sequence[str], targets: Sequence[str]) -> Evaluation:
        """Of a task with labels of which no more is known than its answers, such as a vote."""
        share = metrics.accuracy(predictions, targets)
        low, high = metrics.wilson_interval(share, len(targets))
        figures = {
            "num_examples": float(len(targets)),
            "accuracy": share,
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": metrics.macro_f1(predictions, targets),
        }
        return cls(
            figures,
            tuple(predictions),
            tuple(labels),
            metrics.confusion(predictions, targets, labels),
            metrics.per_label(predictions, targets, labels),
        )

    @classmethod
    def of_texts(cls, predictions: Sequence[str], targets: Sequence[str]) -> Evaluation:
        """Of a task that writes."""
        figures = {name: of(predictions, targets) for name, of in metrics.NAME_TO_TEXT_METRIC.items()}
        if metrics.is_entity_list(targets):
            figures["entity_f1"] = metrics.entity_f1(predictions, targets)
        return cls(figures | {"num_examples": float(len(targets))}, tuple(predictions))

    @property
    def main_metric(self) -> str:
        """The one to compare versions by."""
        return next(name for name in ("accuracy", "entity_f1", "rouge_l") if name in self.metrics)

    def say_low_mass(self) -> str | None:
        """What to do if the labels are hardly what the backbone wants to write; None if they are."""
        mass = self.metrics.get("label_mass", 1.0)
        if mass >= LOW_LABEL_MASS:
            return None
        return (
            f"all labels together have a probability of {mass:.4f}: the backbone would write something else here. A "
            'template that says what is asked for, such as "Review: {input}\\nSentiment: {target}", labels in plain '
            "words, or more tuning, help"
        )

    @property
    def label_temperature(self) -> float | None:
        """Of a task with labels."""
        return None if self.calibration is None else self.calibration.temperature

    def record(self, digest: str, data_sha256: str, data_name: str = "") -> RecordedEvaluation:
        """As the registry keeps it. Args: digest: of the prompt that was measured."""
        return RecordedEvaluation(digest=digest, data_sha256=data_sha256, data_name=data_name, metrics=self.metrics)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is to be measured: the question to whoever answers, and the figures of the answers.

    A source of answers has two methods, `score` and `generate`, each given the served prompt and the inputs. There are
    two: the plain model (`app.measure.plain_model`) and the running engine (`app.answers.measuring.evaluation`).

    Raises InvalidInput: no examples, or a target that is none of the labels.
    """

    served: ServedPrompt
    examples: Sequence[Example]

    def __post_init__(self) -> None:
        require_measurable(self.examples, self.served.labels)

    @property
    def inputs(self) -> list[str]:
        return [example.input for example in self.examples]

    @property
    def targets(self) -> list[str]:
        return [example.target for example in self.examples]

    def evaluate_scores(self, scores: npt.ArrayLike) -> Evaluation:
        """Args: scores: (num_examples, num_labels) log P(label | prompt, text), natural logarithm."""
        return Evaluation.of_scores(scores, self.served.labels, self.targets, temperature=self.served.label_temperature)

    def evaluate_texts(self, texts: Sequence[str]) -> Evaluation:
        """Args: texts: one for each example."""
        return Evaluation.of_texts(texts, self.targets)


def require_measurable(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Raises InvalidInput: no examples, or a target that is none of the labels, if there are any."""
    if not examples:
        raise InvalidInput("there are no examples to evaluate on", param="examples")
    if labels:
        stray = find_stray(examples, labels)
        if stray is not None:
            where = examples[stray].place  # of a request that names a file
            what = f"{where}: the target" if where else f"the target of example {stray + 1}"
            param = "file" if where else f"examples.{stray}.target"
            message, quote = f"{what} is none of the {len(labels)} labels", shorten(examples[stray].target)
            raise InvalidInput(message, param=param, quote=quote)
