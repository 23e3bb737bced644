"""An evaluation as `/v1/tasks/{task}/evaluate` and `softswap eval --json` show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from pydantic import Field

from app.answers.views.reply import Reply
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation


class LabelScoreObject(Reply):
    """How well one label is answered; precision and recall are 0 if there is nothing to divide by."""

    label: str
    precision: float
    recall: float
    f1: float
    num_examples: int = Field(description="Whose target it is.")


class ConfidenceBinObject(Reply):
    """The examples whose likeliest label has a probability in (low, high]."""

    low: float
    high: float
    num_examples: int
    confidence: float = Field(description="Mean probability of the likeliest label.")
    accuracy: float


class CalibrationObject(Reply):
    """What the probabilities are worth. Their expected calibration error is `metrics.ece`."""

    temperature: float = Field(description="The version's, by which these probabilities are made.")
    bins: list[ConfidenceBinObject] = Field(description="Those that hold examples, of 15 of equal width.")


class EvaluationObject(Reply):
    """The figures. Tasks with labels have `labels`, `confusion` and `calibration`; a vote is not calibrated."""

    object: Literal["task.evaluation"] = "task.evaluation"
    model: str = Field(description="The version that was evaluated; of an ensemble all members.")
    data_sha256: str = Field(description="Of the examples, whatever form they came in.")
    main_metric: str
    metrics: dict[str, float]
    labels: list[LabelScoreObject] | None = None
    confusion: list[list[int]] | None = Field(None, description="Counts, targets by predictions, in `labels`' order.")
    calibration: CalibrationObject | None = None
    predictions: list[str] | None = None


def evaluation_object(
    model_id: str, examples: Sequence[Example], measured: Evaluation, *, with_predictions: bool = False
) -> EvaluationObject:
    """Dump it without the fields that are not set."""
    shown = EvaluationObject(
        model=model_id,
        data_sha256=hash_examples(examples),
        main_metric=measured.main_metric,
        metrics=measured.metrics,
    )
    if measured.labels:
        shown.labels = [LabelScoreObject(**asdict(each)) for each in measured.per_label]
        shown.confusion = [list(row) for row in measured.confusion]
    if measured.calibration is not None:
        shown.calibration = CalibrationObject(
            temperature=measured.calibration.temperature,
            bins=[ConfidenceBinObject(**asdict(each)) for each in measured.calibration.bins],
        )
    if with_predictions:
        shown.predictions = list(measured.predictions)
    return shown
