"""What a publication says of its prompt is checked, and made plain JSON, when it is said."""

from __future__ import annotations

import dataclasses

import pytest

from app.errors import BackboneMismatch, InvalidInput
from app.model.layout import Template
from app.registry.formats.binding import bind_text
from app.registry.formats.manifest import Manifest
from app.registry.kept.examples import TunedOn
from app.registry.publication import Publication
from tests.support.models import character_tokenizer, tiny_backbone
from tests.support.prompts import random_prompt


@pytest.mark.parametrize("name", ["sampling", "metrics", "tuning", "provenance"])
@pytest.mark.parametrize("value", [{"x": float("inf")}, {"x": object()}])
def test_what_json_cannot_say_is_refused_with_the_fields_name(name: str, value: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=name) as refused:
        Publication(random_prompt(tiny_backbone()), **{name: value})
    assert refused.value.param == name


def test_values_are_what_json_gives_back_and_no_longer_the_callers() -> None:
    labels, sampling = ["no", "yes"], {"stop": ("\n",), "logit_bias": {5: 1.0}}
    said = Publication(random_prompt(tiny_backbone()), labels=labels, sampling=sampling)
    labels.append("maybe")
    sampling["temperature"] = 9
    assert said.labels == ("no", "yes")
    assert said.sampling == {"stop": ["\n"], "logit_bias": {"5": 1.0}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        said.description = "other"  # type: ignore[misc]


def test_every_field_reaches_the_task_json() -> None:
    backbone = tiny_backbone()
    prompt = random_prompt(backbone)
    stated = {
        "labels": ("no", "yes"),
        "label_temperature": 2.0,
        "sampling": {"max_tokens": 3},
        "metrics": {"accuracy": 0.5},
        "data_sha256": "d" * 64,
        "tuning": {"learning_rate": 0.3},
        "provenance": {"source": "test"},
        "description": "A task.",
    }
    examples = TunedOn(b'["a", "yes"]\n', b'["b", "no"]\n')
    publication = Publication(
        prompt, initial=prompt.rows, template=Template("{input}: {target}"), examples=examples, **stated
    )
    files = publication.encode("mood", 7, backbone)
    manifest = Manifest.decode(files["task.json"])
    stated["provenance"] |= examples.provenance
    assert {name: getattr(manifest, name) for name in stated} == stated
    assert (manifest.task, manifest.number, manifest.template) == ("mood", 7, "{input}: {target}")
    assert None not in (manifest.tensor, manifest.initial)
    assert {field.name for field in dataclasses.fields(Publication)} == {
        *stated, "prompt", "initial", "template", "examples",
    }  # fmt: skip


# --- whether it can answer

QUESTION = Template("Q: {input}\nA: {target}")
"""Of 7 tokens around the input, the beginning-of-sequence id included, for the byte-level tokenizer."""


@pytest.mark.parametrize(
    ("num_virtual_tokens", "template", "labels", "num_positions"),
    [
        (20, None, (), 20 + 1 + 1 + 1),  # the beginning of the sequence, a token of text, one of the answer
        (20, QUESTION, (), 20 + 7 + 1 + 1),
        (20, QUESTION, ("x", "y"), 20 + 7 + 1 + 1),  # " x", whose last token need not be put in
        (20, QUESTION, ("no", "yes"), 20 + 7 + 1 + 3),
        (20, QUESTION, ("no", "nope"), 20 + 7 + 1 + 5),  # one begins the other, so both end with the end-of-sequence id
        (200, None, (), 200 + 3),
    ],
)
def test_it_needs_room_for_the_template_one_token_of_text_and_an_answer(
    num_virtual_tokens: int, template: Template | None, labels: tuple[str, ...], num_positions: int
) -> None:
    backbone = tiny_backbone()
    said = Publication(random_prompt(backbone, num_virtual_tokens), template=template, labels=labels)
    said.require_answerable(backbone, num_positions)
    for fewer in (num_positions - 1, num_virtual_tokens + 1, num_virtual_tokens, 8):
        with pytest.raises(InvalidInput, match=f"max_model_len is {fewer}") as refused:
            said.require_answerable(backbone, fewer)
        assert refused.value.param == "num_virtual_tokens"


def test_a_default_of_many_new_tokens_needs_no_room_because_an_answer_is_cut_to_what_there_is() -> None:
    backbone = tiny_backbone()
    said = Publication(random_prompt(backbone, 20), sampling={"max_tokens": 400})
    said.require_answerable(backbone, 23)


def test_a_written_prompt_begins_the_sequence_itself() -> None:
    backbone = tiny_backbone()
    said = Publication(bind_text("Be kind.", backbone), template=QUESTION)
    said.require_answerable(backbone, 9 + 6 + 1 + 1)
    with pytest.raises(InvalidInput, match="max_model_len is 16"):
        said.require_answerable(backbone, 9 + 6 + 1)


def test_labels_that_cannot_be_told_apart_are_refused_by_name() -> None:
    backbone = dataclasses.replace(tiny_backbone(), tokenizer=character_tokenizer())
    said = Publication(random_prompt(backbone), template=QUESTION, labels=("caf\xe9", "cafe", "caf\xfc"))
    with pytest.raises(InvalidInput, match='"caf\xe9" and "caf\xfc" are the same') as refused:
        said.require_answerable(backbone, 512)
    assert refused.value.param == "labels"


def test_another_backbones_prompt_is_refused_first() -> None:
    said = Publication(random_prompt(tiny_backbone()), labels=("x", "x y"))
    with pytest.raises(BackboneMismatch):
        said.require_answerable(tiny_backbone("qwen2"), 512)
