"""What a publication says of its prompt is checked, and made plain JSON, when it is said."""

from __future__ import annotations

import dataclasses

import pytest

from app.errors import InvalidInput
from app.model.layout import Template
from app.registry.formats.manifest import Manifest
from app.registry.publication import Publication
from tests.support.models import tiny_backbone
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
    publication = Publication(prompt, initial=prompt.rows, template=Template("{input}: {target}"), **stated)
    files = publication.encode("mood", 7, backbone)
    manifest = Manifest.decode(files["task.json"])
    assert {name: getattr(manifest, name) for name in stated} == stated
    assert (manifest.task, manifest.number, manifest.template) == ("mood", 7, "{input}: {target}")
    assert None not in (manifest.tensor, manifest.initial)
    assert {field.name for field in dataclasses.fields(Publication)} == {*stated, "prompt", "initial", "template"}
