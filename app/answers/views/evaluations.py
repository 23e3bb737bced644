"""An evaluation as `/v1/tasks/{task}/evaluate` and `softswap eval --json` show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from app.answers.views.reply import Reply
from app.measure.calibration import ConfidenceBin
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation
from app.measure.metrics import LabelScore


class CalibrationObject(Reply):
    """What the probabilities are worth. Their expected calibration error is `metrics.ece`."""

    temperature: float = Field(description="The version's, by which these probabilities are made.")
    bins: tuple[ConfidenceBin, ...] = Field(description="Those that hold examples, of 15 of equal width.")


class EvaluationObject(Reply):
    """The figures. Tasks with labels have `labels`, `confusion` and `calibration`; a vote is not calibrated."""

    object: Literal["task.evaluation"] = "task.evaluation"
    model: str = Field(description="The version that was evaluated; of an ensemble all members.")
    data_sha256: str = Field(description="Of the examples, whatever form they came in.")
    main_metric: str
    metrics: dict[str, float]
    labels: tuple[LabelScore, ...] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None, description="Counts, targets by predictions, in `labels`' order."
    )
    calibration: CalibrationObject | None = None
    predictions: tuple[str, ...] | None = None


def evaluation_object(
    model_id: str, examples: Sequence[Example], measured: Evaluation, *, with_predictions: bool = False
) -> EvaluationObject:
    """Dump it without the fields that are not set."""
    found = EvaluationObject.given_in(measured)
    if measured.labels:
        found["labels"] = measured.per_label
    if not with_predictions:
        del found["predictions"]
    return EvaluationObject(model=model_id, data_sha256=hash_examples(examples), **found)
