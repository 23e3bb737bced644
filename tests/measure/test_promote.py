"""Promotions measure what a gate compares and is not known yet, and nothing else."""

from __future__ import annotations

import pytest

from app.errors import GateFailed, InvalidInput, NotFound
from app.measure.dataset import Example, hash_examples
from app.measure.promote import GateRequest, promote, publish, run_with, score_move
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from tests.support.fake_model import FakeModel
from tests.support.memory_store import MemoryStore
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt

LABELS = ("no", "yes")
EXAMPLES = tuple(Example(f"text {n}", LABELS[n % 2]) for n in range(4))


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def registry(backbone: Backbone) -> Registry:
    """Task a: versions 1 to 3, of which 1 is live."""
    opened = Registry(MemoryStore(), backbone)
    for seed in range(3):
        opened.publish("a", publication(backbone, seed), alias="live" if seed == 0 else None)
    return opened


def publication(backbone: Backbone, seed: int) -> Publication:
    return Publication(random_prompt(backbone, seed=seed), labels=LABELS)


def digest_of(registry: Registry, number: int) -> str:
    return registry.resolve(f"a@{number}").digest


def test_without_a_gate_nothing_is_measured(registry: Registry, model: FakeModel, backbone: Backbone) -> None:
    run_with(model, promote(registry, "a", "live", 2))
    run_with(model, publish(registry, "a", publication(backbone, 9), alias="live"))
    run_with(model, publish(registry, "new", publication(backbone, 9), alias="live"))
    assert (model.asked, registry.resolve("a").number) == ([], 4)


def test_a_gate_that_comes_with_a_move_measures_both_versions_once(registry: Registry, model: FakeModel) -> None:
    run_with(model, promote(registry, "a", "live", 2, gate=GateRequest(EXAMPLES)))
    assert sorted(model.asked) == sorted(digest_of(registry, number) for number in (1, 2))
    gate = registry.task("a").gates["live"]
    assert (gate.data_sha256, gate.metric, gate.tolerance) == (hash_examples(EXAMPLES), "accuracy", 0.0)
    model.asked.clear()
    run_with(model, promote(registry, "a", "live", {1: 0.5, 3: 0.5}))
    assert model.asked == [digest_of(registry, 3)]


def test_a_lower_score_is_kept_and_moves_nothing_unless_forced(registry: Registry, model: FakeModel) -> None:
    model.digest_to_num_right = {digest_of(registry, 2): 3}
    with pytest.raises(GateFailed):
        run_with(model, promote(registry, "a", "live", 2, gate=GateRequest(EXAMPLES)))
    assert (registry.resolve("a").number, registry.task("a").gates) == (1, {})
    [kept] = registry.evaluations.of_version(registry.resolve("a@2"))
    assert kept.metrics["accuracy"] == 0.75
    run_with(model, promote(registry, "a", "live", 2, gate=GateRequest(EXAMPLES, tolerance=0.25)))
    run_with(model, promote(registry, "a", "live", 1))
    run_with(model, promote(registry, "a", "live", 3, force=True))
    assert digest_of(registry, 3) not in model.asked


def test_a_publication_is_measured_before_it_has_a_number(
    registry: Registry, model: FakeModel, backbone: Backbone
) -> None:
    run_with(model, promote(registry, "a", "live", 1, gate=GateRequest(EXAMPLES)))
    worse = publication(backbone, 9)
    model.digest_to_num_right = {worse.prompt.digest: 1}
    with pytest.raises(GateFailed):
        run_with(model, publish(registry, "a", worse, alias="live"))
    assert len(registry.versions("a")) == 3
    version = run_with(model, publish(registry, "a", publication(backbone, 8), alias="live"))
    assert registry.resolve("a") == version
    assert registry.evaluations.find(version, hash_examples(EXAMPLES)) is not None
    assert run_with(model, publish(registry, "a", worse, alias=None)).number == 5


def test_what_a_move_asks_for_can_be_measured_ahead_of_it(registry: Registry, model: FakeModel) -> None:
    run_with(model, promote(registry, "a", "live", 1, gate=GateRequest(EXAMPLES)))
    run_with(model, score_move(registry, "a", "live", 2))
    assert registry.resolve("a").number == 1
    model.asked.clear()
    registry.set_alias("a", "live", 2)
    assert (model.asked, registry.resolve("a").number) == ([], 2)


def test_a_gate_that_cannot_be_is_refused_before_anything_is_measured(registry: Registry, model: FakeModel) -> None:
    with pytest.raises(InvalidInput, match="the metric must be one of accuracy, macro_f1"):
        run_with(model, promote(registry, "a", "live", 2, gate=GateRequest(EXAMPLES, metric="rouge_l")))
    with pytest.raises(InvalidInput, match="example 1 is none of the 2 labels"):
        run_with(model, promote(registry, "a", "live", 2, gate=GateRequest((Example("x", "maybe"),))))
    with pytest.raises(NotFound):
        run_with(model, promote(registry, "none", "live", 1))
    assert model.asked == []
