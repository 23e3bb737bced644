"""Whatever a chat template does is an answer about the conversation, or about the template."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.chat_template import ChatTemplate
from tests.support.models import copy_tokenizer, tiny_backbone

SECRET = "hunter2hunter2"
TURNS = [{"role": "user", "content": SECRET}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def template(text: object) -> ChatTemplate:
    return ChatTemplate(copy_tokenizer(chat_template=text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ raise_exception('after a user comes an assistant') }}", "after a user comes an assistant"),
        ("{{ tools | length }}", "TypeError: object of type 'NoneType' has no len"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ messages[0].missing.more }}", "no attribute 'missing'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{{ messages[0].content.encode().decode('utf-16') | int + 'a' }}", "Error"),
        ("{{ {}[messages[0].content] + 1 }}", "no attribute '...'"),
        ("{% include 'other' %}", "no loader"),
        ("{{ messages | map(attribute='content') | first | truncate(0) }}", ""),
        ("{{ '\\ud800' }}", ""),
    ],
)
def test_what_a_template_raises_is_the_reason_of_a_refusal(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        template(text).encode(TURNS)
    assert caught.value.param == "messages"
    assert words in caught.value.message
    assert "roles" not in caught.value.message
    assert SECRET not in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        (None, "has no chat template"),
        ("", "has no chat template"),
        ({"tool_use": PLAIN, "rag": PLAIN}, "named rag, tool_use, and none named default"),
        ("line\n{% for m in messages %}{{ m.content }", "cannot be read (line 2: "),
        ("{{ messages | unheard_of }}", "No filter named 'unheard_of'"),
        ({"default": "{% if %}"}, "cannot be read (line 1: "),
    ],
)
def test_what_is_no_template_is_found_without_a_conversation(templates: object, words: str) -> None:
    problem = template(templates).problem
    assert problem is not None
    assert words in problem


def test_the_default_of_several_is_used() -> None:
    several = template({"default": PLAIN, "rag": "{% if %}"})
    assert several.problem is None
    assert several.encode(TURNS) == template(PLAIN).encode(TURNS)


@pytest.mark.parametrize(
    ("after", "wanted"),
    [("</s>", 1), ("<pad>\n", 2), ("\n<pad>", 2), ("\n", None), ("", None), ("x<pad>", None)],
)
def test_the_token_that_ends_a_turn_is_read_off_an_answer(after: str, wanted: int | None) -> None:
    text = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}" + after + "{% endfor %}"
    assert template(text).end_of_turn_id == wanted


@pytest.mark.parametrize("text", ["{{ raise_exception('no') }}", "{% if %}", "{{ messages[0].content }}", None])
def test_a_template_that_writes_no_answer_ends_no_turn(text: str | None) -> None:
    assert template(text).end_of_turn_id is None


def test_a_template_that_cannot_be_read_is_told_at_load(caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_config(tiny_backbone().model.config, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        backbone = Backbone.from_model(model, copy_tokenizer(chat_template="{% if %}"), name="odd")
    assert "odd has a chat template that cannot be read (line 1: " in caplog.text
    assert not backbone.has_chat_template
