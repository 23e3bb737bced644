"""What a version says about itself decides how it is measured."""

from __future__ import annotations

import pytest

from app.errors import InvalidInput
from app.measure.served_prompt import DEFAULT_MAX_NEW_TOKENS, ServedPrompt
from app.model.layout import BARE, Template
from app.registry.publication import Publication
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt


def test_a_version_is_measured_with_its_own_template_labels_temperature_and_end() -> None:
    prompt = random_prompt(tiny_backbone())
    template = Template("{input}\nA: {target}")
    sampling = {"temperature": 1.0, "max_tokens": 9, "stop": "\n"}
    said = Publication(prompt, template=template, labels=("a", "b"), label_temperature=2.0, sampling=sampling)
    served = ServedPrompt.of(prompt, said)
    assert (served.prompt, served.template, served.labels) == (prompt, template, ("a", "b"))
    assert (served.label_temperature, served.stop, served.max_new_tokens) == (2.0, ("\n",), 9)
    silent = ServedPrompt.of(prompt, Publication(prompt))
    assert (silent.template, silent.label_temperature, silent.stop) == (BARE, 1.0, ())
    assert silent.max_new_tokens == DEFAULT_MAX_NEW_TOKENS


def test_a_text_ends_before_the_first_stop_string_in_it() -> None:
    served = ServedPrompt(None, stop=("END", "\n"))
    assert served.cut("one \n two END three") == "one"
    assert served.cut(" whole ") == "whole"


def test_inputs_get_the_room_that_prompt_and_answer_leave() -> None:
    prompt = random_prompt(tiny_backbone(), 6)
    assert ServedPrompt(prompt).input_room(100, 10) == 84
    with pytest.raises(InvalidInput, match="longer than the backbone's positions"):
        ServedPrompt(prompt).input_room(16, 10)
