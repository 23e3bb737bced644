"""A state is judged on validation by the metric that is asked for, as evaluation would judge it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.engine.threads.device_lease import run_to_end
from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.layout import Template
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Metric, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.objective import choose_objective
from app.tuning.run.rows import MAX_WRITTEN_ROWS, Chunk, RunRows
from app.tuning.run.run import tune_task
from tests.support.models import tiny_backbone

TEMPLATE = Template("{input}={target}")
CONFIG = TuneConfig(kind=PromptKind.KV, num_virtual_tokens=8, max_steps=20, batch_size=8, learning_rate=0.1)
LABELLED = Dataset("d.jsonl", tuple(Example(f"text {i}", ("no", "yes", "perhaps")[i % 3]) for i in range(24)))
LETTERS = Dataset("e.jsonl", tuple(Example(f"{'zq'[i % 2]} {i}", "aab"[i % 3]) for i in range(24)))


def plan(data: Dataset, metric: Metric, *, writes: bool) -> TuningPlan:
    config = replace(CONFIG, metric=metric, max_target_tokens=4 if writes else 128)
    return TuningPlan.make(data, data, config, template=TEMPLATE, labels=() if writes else None)


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.MACRO_F1])
def test_labels_are_judged_as_evaluation_judges_them(metric: Metric) -> None:
    backbone = tiny_backbone()
    prompts = torch.randn(2, 5, backbone.kv_row_size, generator=torch.Generator().manual_seed(3))
    values = [judged_alike(plan(LABELLED, metric, writes=False), prompts, number) for number in range(2)]
    assert 0 < max(values) < 1


@pytest.mark.parametrize("metric", [Metric.EXACT_MATCH, Metric.TOKEN_F1, Metric.ROUGE_L])
def test_written_answers_are_judged_as_evaluation_judges_them(metric: Metric) -> None:
    """Of two prompts in one forward: one that has learned to write one of the two answers, and one that has not."""
    backbone = tiny_backbone()
    result = tune_task(backbone, plan(LETTERS, Metric.EXACT_MATCH, writes=True))
    assert result.prompt.rows is not None
    prompts = torch.stack([result.initial, result.prompt.rows.float()])
    values = [judged_alike(plan(LETTERS, metric, writes=True), prompts, number) for number in range(2)]
    assert values[0] < values[1]


def judged_alike(asked: TuningPlan, prompts: torch.Tensor, number: int) -> float:
    """What the objective and evaluation both say of one of the prompts."""
    backbone = tiny_backbone()
    rows = RunRows.of(backbone, asked)
    objective = choose_objective(backbone, asked, rows.train)
    with torch.no_grad():
        prefix = PromptPrefix.of_rows(backbone, PromptKind.KV, prompts)
        chunk = Chunk(rows.validation, [(i, number) for i in range(len(rows.validation))])
        figures = run_to_end(objective.judge(prefix, chunk))
    prompt = TaskPrompt.from_kv(prompts[number], backbone.fingerprint)
    most = 2 * max(len(row.target_ids) for row in rows.validation)
    measured = evaluate(backbone, ServedPrompt(prompt, TEMPLATE, asked.labels, max_new_tokens=most), asked.validation)
    score = objective.score(figures)
    assert score.metric == asked.metric
    assert score.value == pytest.approx(measured.metrics[asked.metric])
    return score.value


def test_the_best_state_is_the_one_that_writes_best() -> None:
    result = tune_task(tiny_backbone(), plan(LETTERS, Metric.TOKEN_F1, writes=True))
    assert {event.metric for event in result.history} == {"token_f1"}
    best = max(event.value for event in result.history)
    assert result.history[0].value < best
    assert result.metrics["validation_token_f1"] == pytest.approx(best)


def test_a_bounded_number_of_answers_is_written() -> None:
    data = Dataset("e.jsonl", LETTERS.examples * 10)
    backbone = tiny_backbone()
    assert len(RunRows.of(backbone, plan(data, Metric.ROUGE_L, writes=True)).validation) == MAX_WRITTEN_ROWS
    assert len(RunRows.of(backbone, plan(data, Metric.LOSS, writes=True)).validation) == 240


@pytest.mark.parametrize(
    ("data", "metric", "writes"),
    [
        (LABELLED, Metric.ROUGE_L, False),
        (LABELLED, Metric.ACCURACY, True),
        (LABELLED, Metric.ENTITY_F1, True),
    ],
)
def test_a_metric_that_does_not_suit_the_task_is_refused(data: Dataset, metric: Metric, writes: bool) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan(data, metric, writes=writes)
    assert caught.value.param == "metric"
