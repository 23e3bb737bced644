"""Evaluation answers as the backbone alone, row by row, would."""

from __future__ import annotations

import pytest
import torch

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import TaskPrompt
from tests.support.models import tiny_backbone

TEMPLATE = Template("{input}\nA: {target}")
INPUTS = ["a somewhat longer text than the others", "b", "c d e", "c d"]


def prompt_of(backbone: Backbone) -> TaskPrompt:
    rows = torch.randn(6, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * 0.3
    return TaskPrompt.from_embeddings(rows, backbone.fingerprint)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_batched_greedy_text_equals_generate_row_by_row(architecture: str) -> None:
    backbone = tiny_backbone(architecture)
    prompt = prompt_of(backbone)
    assert prompt.rows is not None
    examples = [Example(text, "x") for text in INPUTS]
    got = evaluate(backbone, ServedPrompt(prompt, TEMPLATE, (), max_new_tokens=12), examples).predictions
    for text, answer in zip(INPUTS, got, strict=True):
        token_ids = torch.tensor(TEMPLATE.encode_input(backbone.tokenizer, text))
        embeds = torch.cat([prompt.rows, backbone.embed(token_ids)])[None]
        output = backbone.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            do_sample=False,
            max_new_tokens=12,
        )
        assert answer == backbone.tokenizer.decode(output[0], skip_special_tokens=True).strip()


def test_a_task_with_labels_reports_what_its_predictions_say() -> None:
    backbone = tiny_backbone()
    labels = ("no", "yes", "perhaps")
    asked = [Example(text, "no") for text in INPUTS]
    predictions = evaluate(backbone, ServedPrompt(prompt_of(backbone), TEMPLATE, labels), asked).predictions
    right = [Example(text, label) for text, label in zip(INPUTS, predictions, strict=True)]
    measured = evaluate(backbone, ServedPrompt(prompt_of(backbone), TEMPLATE, labels), right, batch_size=3)
    assert measured.metrics["accuracy"] == 1.0
    assert measured.metrics["accuracy_low"] < 1.0
    assert measured.metrics["num_examples"] == 4
    assert 0 < measured.metrics["label_mass"] < 1
    assert sum(map(sum, measured.confusion)) == 4
    assert measured.main_metric == "accuracy"


def test_a_temperature_changes_probabilities_and_no_answer() -> None:
    backbone, labels = tiny_backbone(), ("no", "yes", "perhaps")
    asked = [Example(text, labels[i % 3]) for i, text in enumerate(INPUTS)]
    raw = evaluate(backbone, ServedPrompt(prompt_of(backbone), TEMPLATE, labels), asked)
    fitted = evaluate(backbone, ServedPrompt(prompt_of(backbone), TEMPLATE, labels, label_temperature=None), asked)
    assert fitted.predictions == raw.predictions
    assert fitted.label_temperature not in (None, 1.0)
    assert fitted.metrics["nll"] < raw.metrics["nll"] == fitted.metrics["uncalibrated_nll"]
    assert fitted.metrics["uncalibrated_ece"] == raw.metrics["ece"]
    assert fitted.metrics["label_mass"] == raw.metrics["label_mass"]
    assert "uncalibrated_ece" not in raw.metrics


def test_stop_strings_end_an_answer_and_are_not_part_of_it() -> None:
    backbone = tiny_backbone()
    [whole] = evaluate(backbone, ServedPrompt(None, TEMPLATE, (), max_new_tokens=8), [Example("a", "x")]).predictions
    middle = whole[len(whole) // 2]
    [cut] = evaluate(
        backbone, ServedPrompt(None, TEMPLATE, (), max_new_tokens=8, stop=("never", middle)), [Example("a", "x")]
    ).predictions
    assert cut == whole[: whole.index(middle)].strip()


def test_a_target_that_is_no_label_is_refused_with_its_number() -> None:
    with pytest.raises(InvalidInput, match="example 2 is none of the 2 labels"):
        evaluate(
            tiny_backbone(), ServedPrompt(None, TEMPLATE, ("no", "yes")), [Example("a", "no"), Example("b", "maybe")]
        )


def test_an_entity_task_is_measured_by_entities_and_another_by_rouge() -> None:
    backbone = tiny_backbone()
    entities = evaluate(
        backbone, ServedPrompt(None, TEMPLATE, (), max_new_tokens=3), [Example("a", "person = b"), Example("c", "none")]
    )
    titles = evaluate(backbone, ServedPrompt(None, TEMPLATE, (), max_new_tokens=3), [Example("a", "A title")])
    assert (entities.main_metric, titles.main_metric) == ("entity_f1", "rouge_l")


def test_inputs_longer_than_the_backbone_lose_their_end() -> None:
    measured = evaluate(tiny_backbone(), ServedPrompt(None, TEMPLATE, ("no", "yes")), [Example("a" * 2000, "no")])
    assert measured.metrics["num_examples"] == 1


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    backbone = tiny_backbone()
    prompt = TaskPrompt.from_embeddings(torch.zeros(512, backbone.hidden_size), backbone.fingerprint)
    with pytest.raises(InvalidInput, match="longer than the backbone"):
        evaluate(backbone, ServedPrompt(prompt, TEMPLATE, ("no", "yes")), [Example("a", "no")])


def test_no_examples_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no examples"):
        evaluate(tiny_backbone(), ServedPrompt(None, TEMPLATE, ()), [])
