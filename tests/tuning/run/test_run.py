"""A run learns, repeats itself by its seed, keeps its best and leaves the backbone as it was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from app.errors import BackboneMismatch, InvalidInput
from app.measure.dataset import Example
from app.measure.encoding import EncodedExample
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.loading.checkpoint import weights_digest
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Init, Loss, OptimizerKind, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.result import TuneResult
from app.tuning.run.events import Evaluated, StepDone, TuneEvent, TuningStarted, TuningStopped, Warned
from app.tuning.run.population import embedding_rms, initial_rows
from app.tuning.run.run import tune_task
from app.tuning.search import Search
from tests.support.models import tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
LABELS = ("no", "yes")
EXAMPLES = [Example(("zz", "qq")[i % 2] + " abc"[: i % 4], LABELS[i % 2]) for i in range(64)]
CONFIG = TuneConfig(num_virtual_tokens=8, batch_size=16, max_steps=30, eval_every=10, learning_rate=0.2)


def plan(config: TuneConfig, labels: tuple[str, ...] = LABELS, **changes: object) -> TuningPlan:
    made = TuningPlan(tuple(EXAMPLES), tuple(EXAMPLES), TEMPLATE, labels, config, Search())
    return replace(made, **changes)  # type: ignore[arg-type]


def fit(backbone: Backbone, config: TuneConfig, labels: tuple[str, ...] = LABELS, **kwargs: object) -> TuneResult:
    return tune_task(backbone, plan(config, labels), **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [Loss.LABELS, Loss.TOKENS])
@pytest.mark.parametrize("optimizer", OptimizerKind)
def test_labels_told_by_the_input_are_learned(loss: Loss, optimizer: OptimizerKind) -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, replace(CONFIG, loss=loss, optimizer=optimizer, max_steps=60))
    measured = evaluate(backbone, ServedPrompt(tuned.prompt, TEMPLATE, LABELS), EXAMPLES)
    assert measured.metrics["accuracy"] > (0.95 if loss is Loss.LABELS else 0.7)
    assert measured.metrics["accuracy"] == pytest.approx(max(event.value for event in tuned.history))


def test_a_kv_prompt_starts_as_the_embeddings_would_and_learns() -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, replace(CONFIG, kind=PromptKind.KV, max_steps=60))
    assert tuned.prompt.kind is PromptKind.KV
    assert tuned.prompt.rows is not None
    assert tuned.prompt.rows.shape == tuned.initial.shape == (8, backbone.kv_row_size)
    assert tuned.history[0].value == fit(backbone, replace(CONFIG, max_steps=1)).history[0].value
    measured = evaluate(backbone, ServedPrompt(tuned.prompt, TEMPLATE, LABELS), EXAMPLES)
    assert measured.metrics["accuracy"] == pytest.approx(max(event.value for event in tuned.history))
    assert measured.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_the_result_is_in_bfloat16_unless_an_answer_changes_and_is_measured_as_it_is(kind: PromptKind) -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, replace(CONFIG, kind=kind, max_steps=3))
    rounded = tuned.prompt.rounded(torch.bfloat16)
    served = [ServedPrompt(each, TEMPLATE, LABELS, label_temperature=None) for each in (tuned.prompt, rounded)]
    measured = [evaluate(backbone, each, EXAMPLES) for each in served]
    assert measured[0].metrics == pytest.approx(tuned.validation.metrics)
    assert (rounded.digest == tuned.prompt.digest) == (measured[0].predictions == measured[1].predictions)


def test_a_kv_prompt_is_continued_from_its_own_rows() -> None:
    backbone = tiny_backbone()
    config = replace(CONFIG, kind=PromptKind.KV, max_steps=1)
    first = fit(backbone, config).prompt
    again = tune_task(backbone, plan(replace(config, init=Init.PROMPT), init_prompt=first))
    assert first.rows is not None
    torch.testing.assert_close(again.initial, first.rows)


def test_writing_is_learned() -> None:
    tuned = fit(tiny_backbone(), CONFIG, labels=())
    assert tuned.history[-1].metric == "loss"
    assert tuned.history[-1].value < 0.8 * tuned.history[0].value


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another() -> None:
    config = replace(CONFIG, max_steps=4)
    first, again = (fit(tiny_backbone(), config).prompt.digest for _ in range(2))
    assert first == again
    assert fit(tiny_backbone(), replace(config, seed=1)).prompt.digest != first


def test_micro_batches_add_up_to_the_batch() -> None:
    config = replace(CONFIG, max_steps=3, eval_every=3)
    whole, parts = fit(tiny_backbone(), config), fit(tiny_backbone(), replace(config, micro_batch_size=5))
    assert whole.prompt.rows is not None
    assert parts.prompt.rows is not None
    torch.testing.assert_close(whole.prompt.rows, parts.prompt.rows, atol=1e-4, rtol=1e-2)  # of bfloat16


def test_the_backbone_is_the_same_before_and_after() -> None:
    backbone = tiny_backbone()
    before = weights_digest(backbone.model)
    fit(backbone, replace(CONFIG, max_steps=3))
    assert weights_digest(backbone.model) == before
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_the_prompt_is_the_best_of_validation_and_not_the_last() -> None:
    """Validation asks for the opposite of what is trained, so tuning makes it worse."""
    opposite = [Example(example.input, LABELS[example.target == "no"]) for example in EXAMPLES]
    tuned = tune_task(tiny_backbone(), plan(replace(CONFIG, max_steps=60), validation=tuple(opposite)))
    best = max(tuned.history, key=lambda event: event.value)
    assert best.step == tuned.best_step < 60
    assert tuned.history[-1].value < best.value
    measured = evaluate(tiny_backbone(), ServedPrompt(tuned.prompt, TEMPLATE, LABELS), opposite)
    assert measured.metrics["accuracy"] == pytest.approx(best.value)


def test_patience_ends_a_run_that_gets_no_better() -> None:
    tuned = fit(tiny_backbone(), replace(CONFIG, learning_rate=0.0, max_steps=50, eval_every=1, patience=3))
    assert (tuned.num_steps, tuned.stop_reason, tuned.best_step) == (3, "patience", 0)


def test_a_run_stops_when_asked() -> None:
    tuned = fit(tiny_backbone(), CONFIG, should_stop=lambda: True)
    assert (tuned.num_steps, tuned.stop_reason) == (1, "stopped")


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # the model is still broken when it is measured
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_best() -> None:
    backbone = tiny_backbone()
    seen: list[TuneEvent] = []
    hooks = []

    def poison(event: TuneEvent) -> None:
        seen.append(event)
        if isinstance(event, Evaluated) and event.step == 2:
            hooks.append(backbone.model.register_forward_hook(lambda *_: _nan(_[-1])))

    tuned = fit(backbone, replace(CONFIG, eval_every=2), on_event=poison)
    hooks[0].remove()
    assert tuned.stop_reason == "not finite"
    assert tuned.num_steps == 3
    assert tuned.best_step in {0, 2}
    assert all(math.isfinite(event.loss) for event in seen if isinstance(event, StepDone))


def _nan(output: object) -> object:
    output.logits = output.logits * math.nan  # type: ignore[attr-defined]
    return output


def test_events_tell_the_run_from_start_to_stop() -> None:
    seen: list[TuneEvent] = []
    tuned = fit(tiny_backbone(), replace(CONFIG, max_steps=4, eval_every=2), on_event=seen.append)
    assert isinstance(seen[0], TuningStarted)
    assert (seen[0].num_steps, seen[0].num_train, seen[0].num_validation, seen[0].num_parameters) == (4, 64, 64, 8 * 32)
    assert [event.step for event in seen if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert tuple(event for event in seen if isinstance(event, Evaluated)) == tuned.history
    assert [event.step for event in tuned.history] == [0, 2, 4]
    assert isinstance(seen[-1], Warned)  # a random backbone would rather write anything but a label
    assert seen[-2] == TuningStopped(4, "finished", tuned.best_step)


def test_a_target_that_is_no_label_is_refused() -> None:
    with pytest.raises(InvalidInput, match="train, example 2: the target is none of"):
        fit(tiny_backbone(), CONFIG, labels=("no", "other"))


def test_a_prompt_that_leaves_no_room_for_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="leave no room"):
        fit(tiny_backbone(), replace(CONFIG, num_virtual_tokens=510))


def init(backbone: Backbone, kind: Init, **kwargs: object) -> torch.Tensor:
    config = replace(CONFIG, init=kind, init_text="abc" if kind is Init.TEXT else "")
    train = [_row("abc"), _row("bcd")]
    return initial_rows(backbone, config, plan(config, **kwargs), train)  # type: ignore[arg-type]


def _row(text: str) -> EncodedExample:
    return EncodedExample(tuple(tiny_backbone().tokenizer(text)["input_ids"]), ())


def test_text_and_vocabulary_begin_with_embeddings_of_their_tokens() -> None:
    backbone = tiny_backbone()
    embeddings = {text: backbone.embed(torch.tensor(backbone.tokenizer(text)["input_ids"])) for text in ("abc", "abcd")}
    expected = embeddings["abc"][1:].repeat(3, 1)[:8]
    torch.testing.assert_close(init(backbone, Init.TEXT), expected)
    sampled = init(backbone, Init.VOCAB)
    assert all(bool((embeddings["abcd"] == row).all(dim=1).any()) for row in sampled)


def test_labels_begin_with_the_mean_of_their_tokens() -> None:
    backbone = tiny_backbone()
    rows = init(backbone, Init.LABELS)
    token_ids = TEMPLATE.encode_target(backbone.tokenizer, "no")
    torch.testing.assert_close(rows[0], backbone.embed(torch.tensor(token_ids)).mean(dim=0))
    assert rows.shape == (8, backbone.hidden_size)


def test_random_rows_have_the_size_of_embeddings() -> None:
    backbone = tiny_backbone()
    assert float(init(backbone, Init.RANDOM).square().mean().sqrt()) == pytest.approx(embedding_rms(backbone), rel=0.2)


def test_another_prompt_is_continued_and_one_of_another_backbone_refused() -> None:
    backbone = tiny_backbone()
    rows = torch.randn(8, backbone.hidden_size)
    prompt = TaskPrompt.from_embeddings(rows, backbone.fingerprint)
    torch.testing.assert_close(init(backbone, Init.PROMPT, init_prompt=prompt), rows)
    with pytest.raises(BackboneMismatch):
        init(backbone, Init.PROMPT, init_prompt=TaskPrompt.from_embeddings(rows, "0" * 64))
    with pytest.raises(InvalidInput, match="needs a prompt"):
        init(backbone, Init.PROMPT)
