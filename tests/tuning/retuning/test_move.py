from __future__ import annotations

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Dataset, Example, split_examples
from app.model.backbone import find_fingerprint
from app.model.loading.catalog.models import DEMO_FINGERPRINT, MODELS
from app.model.loading.checkpoint import fingerprint_files
from app.model.loading.source import find_model
from app.settings import DEMO_BACKBONE, own_cache
from app.tuning.retuning.move import MAX_HELD_OUT, Material, NamedModel

LABELS = ("no", "yes")
ROWS = [Example(f"text {n}", LABELS[n >= 100]) for n in range(200)]


def make(*rows: Example, name: str = "data.jsonl") -> Dataset:
    return Dataset(name, rows)


def test_the_catalog_knows_the_fingerprints_of_its_models() -> None:
    assert fingerprint_files(DEMO_BACKBONE) == DEMO_FINGERPRINT
    for model in MODELS:
        assert find_fingerprint(find_model(model.name, own_cache())) == model.fingerprint
        assert NamedModel.find(model.name, own_cache()) == NamedModel(model.name, model.name, model.fingerprint)


def test_inputs_are_taken_once_in_an_order_that_no_file_decides() -> None:
    material = Material.of_inputs(make(*ROWS, *ROWS[:50]), None, LABELS)
    inputs = [example.input for example in (*material.train, *material.held_out)]
    assert sorted(inputs) == sorted(example.input for example in ROWS)
    train, held_out = split_examples(ROWS)
    assert set(material.train) == set(train)
    assert set(material.held_out) == set(held_out)
    early = [example.target for example in material.train[:60]]
    assert 15 < early.count("yes") < 45
    assert not material.has_answers


def test_inputs_held_out_are_not_learned_and_are_no_more_than_the_old_version_has_time_for() -> None:
    many = [Example(f"held out {n}", "yes") for n in range(MAX_HELD_OUT + 5)]
    material = Material.of_inputs(make(*ROWS, many[0]), make(*many), LABELS)
    assert len(material.held_out) == MAX_HELD_OUT
    assert len(material.train) == len(ROWS) + 5
    assert not set(material.train) & set(material.held_out)


@pytest.mark.parametrize(("labels", "is_known"), [(LABELS, True), (("good", "bad"), False), ((), True)])
def test_targets_of_inputs_are_known_where_all_of_them_can_be_answers(labels: tuple[str, ...], is_known: bool) -> None:
    material = Material.of_inputs(make(*ROWS), None, labels)
    assert {bool(example.target) for example in (*material.train, *material.held_out)} == {is_known}


def test_examples_must_have_the_versions_labels() -> None:
    material = Material.of_examples(make(*ROWS), None, LABELS)
    assert (list(material.train), list(material.held_out)) == split_examples(ROWS)
    assert material.has_answers
    with pytest.raises(InvalidInput, match=r"data\.jsonl, example 101: the target is none of the 1 labels"):
        Material.of_examples(make(*ROWS), None, ("no",))
    with pytest.raises(InvalidInput, match=r"more\.jsonl, example 1"):
        Material.of_examples(make(*ROWS), make(Example("a", "perhaps"), name="more.jsonl"), LABELS)
