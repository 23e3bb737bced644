"""One call goes from examples to a prompt with everything that is published with it."""

from __future__ import annotations

import json

import pytest

from app.measure.dataset import Dataset, Example, hash_examples
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.layout import Template
from app.tuning.config import TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.run import tune_task
from tests.support.models import tiny_backbone

EXAMPLES = tuple(Example(f"{('zz', 'qq')[i % 2]} {i}", ("no", "yes")[i % 2]) for i in range(80))
DATA = Dataset("d.jsonl", EXAMPLES)
CONFIG = TuneConfig(num_virtual_tokens=4, max_steps=3, batch_size=8)


def test_a_file_alone_is_enough() -> None:
    result = tune_task(tiny_backbone(), TuningPlan.make(DATA, None, CONFIG))
    assert result.plan.labels == ("no", "yes")
    assert result.plan.template == Template()
    assert result.provenance["num_train"] + result.provenance["num_validation"] == 80
    assert len(result.provenance["data_hash"]) == 64
    assert result.prompt.num_virtual_tokens == 4
    assert json.loads(json.dumps(result.provenance))["config"]["max_steps"] == 3


def test_the_metrics_are_those_of_the_prompt_on_all_validation_examples() -> None:
    backbone, validation = tiny_backbone(), Dataset("v.jsonl", EXAMPLES[:30])
    config = TuneConfig(num_virtual_tokens=4, max_steps=2, batch_size=8, max_validation_rows=5)
    result = tune_task(backbone, TuningPlan.make(DATA, validation, config))
    measured = evaluate(
        backbone, ServedPrompt(result.prompt, result.plan.template, result.plan.labels), validation.examples
    )
    assert result.metrics["validation_accuracy"] == measured.metrics["accuracy"]
    assert result.metrics["validation_num_examples"] == 30
    assert result.provenance["data_hash"] == hash_examples([*EXAMPLES, *EXAMPLES[:30]])


def test_a_task_that_writes_is_tuned_by_its_loss() -> None:
    examples = tuple(Example(f"text {i}", f"title number {i}") for i in range(40))
    result = tune_task(tiny_backbone(), TuningPlan.make(Dataset("d.jsonl", examples), None, CONFIG))
    assert result.plan.labels == ()
    assert {event.metric for event in result.history} == {"loss"}
    assert "validation_rouge_l" in result.metrics


def test_labels_can_be_denied() -> None:
    result = tune_task(tiny_backbone(), TuningPlan.make(DATA, None, CONFIG, labels=()))
    assert result.plan.labels == ()


def test_a_task_continues_from_another_prompt() -> None:
    backbone = tiny_backbone()
    first = tune_task(backbone, TuningPlan.make(DATA, None, CONFIG))
    config = TuneConfig(num_virtual_tokens=4, max_steps=1, batch_size=8, init="prompt")  # type: ignore[arg-type]
    second = tune_task(backbone, TuningPlan.make(DATA, None, config, init_prompt=first.prompt))
    assert second.history[0].value == pytest.approx(max(event.value for event in first.history))
