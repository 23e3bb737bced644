"""Every method goes through the same harness, learns what can be learned, and leaves the backbone as it was."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from app.compare.method import Method
from app.compare.solution import evaluate_on, solve
from app.compare.trial import Trial, run_trial
from app.compare.weight_run import TrainableCopy, WeightRun
from app.model.loading.checkpoint import weights_digest
from app.model.prompted_forward import PromptPrefix
from app.tuning.run.objective import choose_objective
from app.tuning.run.rows import Chunk, RunRows
from tests.support.comparison_setting import EXAMPLES, toy_setting
from tests.support.models import tiny_backbone

pytestmark = pytest.mark.slow

MEASURED_ANEW = ("tuning_s", "tuning_cpu_s", "peak_memory_bytes", "latency_s")
TUNED = [method for method in Method if method.is_tuned]


def needs(method: Method) -> None:
    for package in method.packages:
        pytest.importorskip(package, reason=f"{package} belongs to the extra `compare`")


@pytest.mark.parametrize("method", TUNED)
def test_every_tuned_method_learns_what_the_input_tells_and_changes_no_resident_weight(method: Method) -> None:
    needs(method)
    backbone = tiny_backbone()
    digest = weights_digest(backbone.model)
    trial = run_trial(backbone, toy_setting(max_steps=40), method, seed=0)
    assert trial.value > 0.9
    assert trial.value == pytest.approx(trial.validation)
    assert trial.num_steps == 40
    assert weights_digest(backbone.model) == digest
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("method", Method)
def test_the_same_seed_finds_the_same_and_json_keeps_it(method: Method) -> None:
    needs(method)
    first, again = (run_trial(tiny_backbone(), toy_setting(max_steps=4), method, seed=3) for _ in range(2))
    keep = lambda trial: {k: v for k, v in asdict(trial).items() if k not in MEASURED_ANEW}  # noqa: E731
    assert keep(first) == keep(again)
    assert Trial.from_json(json.loads(json.dumps(asdict(first)))) == first


@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
def test_weights_are_trained_and_stored_but_not_served(method: Method) -> None:
    needs(method)
    trial = run_trial(tiny_backbone(), toy_setting(max_steps=2), method, seed=0)
    assert trial.latency_s is None
    assert trial.num_stored_bytes >= 4 * trial.num_parameters
    assert (trial.num_parameters == trial.num_backbone_parameters) == (method is Method.FULL)
    assert trial.num_tries == 4


@pytest.mark.parametrize("method", [Method.FEW_SHOT, Method.PROMPT_TUNING, Method.PREFIX_TUNING])
def test_prompts_are_served_and_stored_as_versions(method: Method) -> None:
    backbone = tiny_backbone()
    trial = run_trial(backbone, toy_setting(max_steps=2), method, seed=0)
    width = {Method.PROMPT_TUNING: backbone.hidden_size, Method.PREFIX_TUNING: backbone.kv_row_size}.get(method, 0)
    assert trial.num_parameters == 8 * width
    assert trial.num_stored_bytes > 4 * trial.num_parameters
    assert trial.latency_s is not None
    assert trial.latency_s > 0


def test_a_task_that_writes_is_compared_by_what_is_written() -> None:
    needs(Method.LORA)
    setting = toy_setting(max_steps=2)
    object.__setattr__(setting.plan, "labels", ())
    for method in (Method.ZERO_SHOT, Method.PREFIX_TUNING, Method.LORA):
        trial = run_trial(tiny_backbone(), setting, method, seed=0)
        assert trial.metric == "rouge_l"
        assert 0 <= trial.value <= 1


def test_a_lora_copy_begins_as_the_backbone_bit_for_bit() -> None:
    needs(Method.LORA)
    backbone = tiny_backbone()
    copied = TrainableCopy.lora(backbone, rank=4, seed=0)
    ids = torch.tensor([[0, 5, 9]])
    assert torch.equal(copied.backbone.model(ids).logits, backbone.model(ids).logits)


def test_a_run_has_the_objective_and_the_rows_of_prompt_tuning() -> None:
    """The first update of full fine-tuning is AdamW's along the gradient of the tuner's own loss."""
    backbone, plan = tiny_backbone(), toy_setting(max_steps=1, batch_size=64).fitted(tiny_backbone()).plan
    copied, twin = TrainableCopy.full(backbone), TrainableCopy.full(backbone)
    before = copied.state()
    run = WeightRun(copied, plan)
    rows = RunRows.of(backbone, plan).train
    objective = choose_objective(twin.backbone, plan, rows)
    objective.loss_per_row(PromptPrefix(), Chunk(rows, [(i, 0) for i in range(len(rows))])).mean().backward()
    assert run.update(rows, 0)
    for parameter, old, other in zip(copied.parameters, before, twin.parameters, strict=True):
        assert other.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad)
        clear = other.grad.abs() > 1e-5
        assert torch.equal((old - parameter).sign()[clear], other.grad.sign()[clear])


def test_the_best_state_is_the_one_that_is_kept() -> None:
    backbone = tiny_backbone()
    setting = toy_setting(max_steps=20, eval_every=5).fitted(backbone)
    found = solve(backbone, setting, Method.FULL, seed=0)
    measured = evaluate_on(found.backbone, found.prompt, setting.plan, EXAMPLES)
    assert measured.metrics["accuracy"] == pytest.approx(found.validation)
    assert found.best_step % 5 == 0
