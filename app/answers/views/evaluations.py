"""An evaluation as `/v1/tasks/{task}/evaluate` and `softswap eval --json` show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from app.http.tasks.evaluation_schema import Calibration, ConfidenceBin, Evaluation, LabelScore
from app.measure.dataset import Example, hash_examples
from app.measure.evaluation import Evaluation as Measured


def evaluation_object(
    model_id: str, examples: Sequence[Example], measured: Measured, *, with_predictions: bool = False
) -> Evaluation:
    """Dump it without the fields that are not set."""
    shown = Evaluation(
        model=model_id,
        data_sha256=hash_examples(examples),
        main_metric=measured.main_metric,
        metrics=measured.metrics,
    )
    if measured.labels:
        shown.labels = [LabelScore(**asdict(each)) for each in measured.per_label]
        shown.confusion = [list(row) for row in measured.confusion]
    if measured.calibration is not None:
        shown.calibration = Calibration(
            temperature=measured.calibration.temperature,
            bins=[ConfidenceBin(**asdict(each)) for each in measured.calibration.bins],
        )
    if with_predictions:
        shown.predictions = list(measured.predictions)
    return shown
