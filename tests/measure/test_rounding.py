"""A prompt is published in bfloat16 if no answer changes, and its evaluation is of what is published."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from app.engine.threads.device_lease import Slices, run_to_end
from app.measure.dataset import Example
from app.measure.evaluation import Evaluation, Measurement
from app.measure.plain_model import PlainModel
from app.measure.rounding import evaluate_rounded
from app.measure.served_prompt import ServedPrompt
from app.model.layout import Template
from app.registry.formats.binding import bind_rows, bind_text
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt, random_rows

FIGURES = {"accuracy": 1.0}


def answering(*answers: str) -> tuple[list[TaskPrompt], Callable[[TaskPrompt], Slices[Evaluation]]]:
    """The prompts that were asked for, and a source that gives each the next answer."""
    asked: list[TaskPrompt] = []

    def ask(prompt: TaskPrompt) -> Slices[Evaluation]:
        asked.append(prompt)
        yield
        return Evaluation({**FIGURES, "number": len(asked)}, (answers[len(asked) - 1], "same"))

    return asked, ask


def test_a_prompt_whose_answers_stay_is_rounded_and_measured_as_rounded() -> None:
    prompt = random_prompt(tiny_backbone())
    asked, ask = answering("yes", "yes")
    chosen, measured = run_to_end(evaluate_rounded(prompt, ask))
    assert chosen.digest == prompt.rounded(torch.bfloat16).digest
    assert measured.metrics["number"] == 2
    assert [each.digest for each in asked] == [prompt.digest, chosen.digest]


def test_one_changed_answer_keeps_every_bit() -> None:
    prompt = random_prompt(tiny_backbone())
    _, ask = answering("yes", "no")
    chosen, measured = run_to_end(evaluate_rounded(prompt, ask))
    assert chosen is prompt
    assert measured.metrics["number"] == 1


@pytest.mark.parametrize(
    "prompt",
    [
        random_prompt(tiny_backbone()).rounded(torch.bfloat16),
        bind_text("Be kind.", tiny_backbone()),
        TaskPrompt.from_embeddings(torch.full((2, 32), torch.finfo(torch.float32).max), "f" * 64),
    ],
    ids=["in bfloat16 already", "a text", "too large for bfloat16"],
)
def test_what_cannot_or_need_not_be_rounded_is_measured_once(prompt: TaskPrompt) -> None:
    asked, ask = answering("yes")
    chosen, _ = run_to_end(evaluate_rounded(prompt, ask))
    assert chosen is prompt
    assert len(asked) == 1


@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_with_a_model_the_choice_is_what_its_answers_say(kind: PromptKind) -> None:
    """Rows of seeds with and without a near tie, told apart by asking the model with both, one by one."""
    backbone = tiny_backbone()
    examples = [Example(f"word {n} {chr(97 + n % 26) * (n % 7)}", "no") for n in range(24)]
    model, seen = PlainModel(backbone, 16), set()
    for seed in range(4):
        prompt = bind_rows(random_rows(backbone, seed=seed, kind=kind), kind, backbone)

        def ask(asked: TaskPrompt) -> Slices[Evaluation]:
            served = ServedPrompt(asked, Template("{input}\n{target}"), ("no", "yes"), label_temperature=None)
            return (yield from model.evaluate(Measurement(served, examples)))

        chosen, measured = run_to_end(evaluate_rounded(prompt, ask))
        both = [run_to_end(ask(each)) for each in (prompt, prompt.rounded(torch.bfloat16))]
        is_same = both[0].predictions == both[1].predictions
        assert (chosen is not prompt) == is_same
        assert measured.metrics == both[is_same].metrics
        seen.add(is_same)
    assert True in seen
