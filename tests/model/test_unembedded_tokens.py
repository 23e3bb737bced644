"""A token that the tokenizer has and the model was never given is refused by name, wherever a text comes in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template, encode_labels
from app.registry.formats.binding import bind_text
from app.registry.publication import Publication
from app.tuning.config import Init, TuneConfig
from app.tuning.distillation import DistillationPlan, write_teacher
from app.tuning.plan import TuningPlan
from app.tuning.run.population import initial_rows
from app.tuning.run.run import tune_task
from app.tuning.search import Search
from tests.support.models import build_backbone, copy_tokenizer
from tests.support.server import make_settings, run_server, soft_prompt

TOKEN = "<new>"
TEMPLATE = Template("{input}\n{target}")
GOOD = [Example(f"text {i}", "no") for i in range(3)]
CONFIG = TuneConfig(num_virtual_tokens=2, max_steps=1, batch_size=2)


@cache
def backbone() -> Backbone:
    tokenizer = copy_tokenizer()
    tokenizer.add_tokens([TOKEN])
    return build_backbone(tokenizer=tokenizer)


def tune(examples: list[Example], config: TuneConfig = CONFIG, template: Template = TEMPLATE) -> None:
    data, validation = Dataset("d.jsonl", tuple(examples)), Dataset("v.jsonl", tuple(GOOD))
    tune_task(backbone(), TuningPlan.make(data, validation, config, template=template, labels=()))


def distill(inputs: list[str], teacher: str = "answer") -> None:
    plan = DistillationPlan.make(
        inputs,
        teacher=write_teacher(backbone(), teacher),
        template=TEMPLATE,
        labels=("no", "yes"),
        config=CONFIG,
        search=Search(),
    )
    tune_task(backbone(), plan)


def measure(examples: list[Example], template: Template = TEMPLATE, labels: tuple[str, ...] = ()) -> None:
    evaluate(backbone(), ServedPrompt(None, template, labels, max_new_tokens=2), examples)


TEXT_INIT = TuneConfig(num_virtual_tokens=2, max_steps=1, batch_size=2, init=Init.TEXT, init_text=f"a {TOKEN}")


@pytest.mark.parametrize(
    ("attempt", "where", "param"),
    [
        (lambda: tune([*GOOD, Example(f"x{TOKEN}", "no")]), "the text of example 4 has", "input"),
        (lambda: tune([*GOOD, Example("x", f"no{TOKEN}")]), "the target of example 4 has", "target"),
        (lambda: tune(GOOD, template=Template(f"{{input}}{TOKEN}\n{{target}}")), "the text of example 1 has", "input"),
        (lambda: tune(GOOD, TEXT_INIT), "init_text has", "init_text"),
        (lambda: distill([f"{i}{TOKEN}" for i in range(20)]), "the text of example 1 has", "examples.0.input"),
        (lambda: distill(["a", "b", "c"], f"be {TOKEN}"), "the written prompt has", "prompt"),
        (lambda: measure([*GOOD, Example(TOKEN, "no")]), "the text of example 4 has", "examples.3.input"),
        (lambda: measure([Example("a", "no")], labels=("no", TOKEN)), f'"{TOKEN}" has', "labels"),
        (lambda: encode_labels(backbone(), TEMPLATE, (f"{TOKEN}a", "b")), f'"{TOKEN}a" has', "labels"),
        (lambda: bind_text(f"be {TOKEN}", backbone()), "the text has", "text"),
    ],
)
def test_a_token_without_an_embedding_is_named_with_its_place(
    attempt: Callable[[], object], where: str, param: str
) -> None:
    wanted = re.escape(f"the token '{TOKEN}' (id 259), and the backbone embeds 259 ids only")
    with pytest.raises(InvalidInput, match=f"^{where}.*{wanted}$") as caught:
        attempt()
    assert caught.value.param == param


def test_a_start_of_no_tokens_is_refused() -> None:
    """Vocabularies of whole words drop blanks."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "no": 1}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    blank = replace(TEXT_INIT, init_text="  ")
    plan = TuningPlan.make(Dataset("d", tuple(GOOD)), Dataset("v", tuple(GOOD)), blank, labels=())
    with pytest.raises(InvalidInput, match="init_text has no tokens"):
        initial_rows(build_backbone(tokenizer=PreTrainedTokenizerFast(tokenizer_object=words)), blank, plan, [])


def test_a_request_with_such_a_token_is_told_which(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path), backbone()) as live:
        live.registry.publish("raw", Publication(soft_prompt(backbone())))
        said = httpx.post(f"{live.url}/v1/completions", json={"model": "raw", "prompt": f"a{TOKEN}"})
        asked = httpx.post(f"{live.url}/v1/completions", json={"model": "raw", "prompt": [0, 300]})
    assert (said.status_code, asked.status_code) == (400, 400)
    assert f"the token '{TOKEN}' (id 259)" in said.json()["error"]["message"]
    assert asked.json()["error"]["message"] == "prompt must name ids between 0 and 258"
