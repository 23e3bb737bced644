from __future__ import annotations

import pytest

from app.cli.views.task_view import main_figure


@pytest.mark.parametrize(
    ("metrics", "figure"),
    [
        ({"validation_num_examples": 10.0, "validation_accuracy": 0.8}, "validation accuracy 0.800"),
        ({"validation_accuracy": 0.8, "test_accuracy": 0.7, "test_accuracy_low": 0.6, "test_accuracy_high": 0.75},
         "test accuracy 0.700 [0.600, 0.750]"),
        ({"validation_exact_match": 0.0, "validation_rouge_l": 0.2}, "validation rouge_l 0.200"),
        ({"gain": 1.0}, ""),
    ],
)  # fmt: skip
def test_the_main_figure_is_the_metric_on_the_unseen_split(metrics: dict[str, float], figure: str) -> None:
    assert main_figure(metrics) == figure
