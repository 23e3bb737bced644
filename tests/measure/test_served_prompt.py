"""What a version says about itself decides how it is measured."""

from __future__ import annotations

import pytest

from app.errors import InvalidInput
from app.measure.served_prompt import DEFAULT_MAX_NEW_TOKENS, ServedPrompt
from app.model.layout import BARE, Template
from app.registry.publication import Publication
from app.sampling import SamplingParams
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


def test_a_text_ends_and_looks_as_the_versions_defaults_say_and_is_greedy() -> None:
    sampling = {
        "temperature": 0.7,
        "stop": "END",
        "stop_token_ids": (5,),
        "skip_special_tokens": False,
        "max_tokens": 3,
    }
    said = Publication(random_prompt(tiny_backbone(), 6), sampling=sampling)
    wanted = SamplingParams(
        temperature=0.0, stop=("END",), stop_token_ids=(5,), skip_special_tokens=False, max_tokens=3
    )
    assert ServedPrompt.of(None, said).params == wanted


def test_inputs_get_the_room_that_prompt_and_answer_leave() -> None:
    prompt = random_prompt(tiny_backbone(), 6)
    assert ServedPrompt(prompt).input_room(100, 10) == 84
    with pytest.raises(InvalidInput, match="longer than the backbone's positions"):
        ServedPrompt(prompt).input_room(16, 10)
