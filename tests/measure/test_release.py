"""A tuned version takes an alias over only from a version that does no better on the same examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.measure.dataset import Example
from app.measure.evaluation import Evaluation, Measurement
from app.measure.promote import GateRequest, promote, run_with
from app.measure.release import Release, compare, release
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from tests.support.fake_model import FakeModel
from tests.support.memory_store import MemoryStore
from tests.support.models import tiny_backbone
from tests.support.prompts import random_prompt

LABELS = ("no", "yes")
EXAMPLES = tuple(Example(f"text {n}", LABELS[n % 2]) for n in range(24))


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def registry(backbone: Backbone) -> Registry:
    """Task a: version 1 is live, and version 2 was just tuned."""
    opened = Registry(MemoryStore(), backbone)
    for seed in range(2):
        opened.publish("a", publication(backbone, seed), alias="live" if seed == 0 else None)
    return opened


def publication(backbone: Backbone, seed: int, labels: tuple[str, ...] = LABELS) -> Publication:
    return Publication(random_prompt(backbone, seed=seed), labels=labels)


def measured(num_right: int, labels: tuple[str, ...] = LABELS, examples: tuple[Example, ...] = EXAMPLES) -> Evaluation:
    wrong = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
    answers = [each.target if n < num_right else wrong[each.target] for n, each in enumerate(examples)]
    return Evaluation.of_labels(answers, labels, [each.target for each in examples])


def put_out(
    registry: Registry, model: FakeModel, num_right: int, *, live_right: int, is_told: bool = False, **asked: object
) -> Release:
    """Release a@2, which has `num_right` of the examples right, where a@1 has `live_right`."""
    model.digest_to_num_right.setdefault(registry.resolve("a@1").digest, live_right)
    version = registry.resolve("a@2")
    comparison = run_with(model, compare(registry, version, "live", measured(num_right), EXAMPLES, **asked))
    return release(registry, version, "live", comparison, is_told=is_told)


@pytest.mark.parametrize(("num_right", "is_moved"), [(15, False), (18, False), (19, True), (24, True)])
def test_a_version_that_scores_lower_is_not_moved_to(
    registry: Registry, model: FakeModel, num_right: int, is_moved: bool
) -> None:
    released = put_out(registry, model, num_right, live_right=19)
    assert released.is_moved is is_moved
    assert registry.resolve("a").number == (2 if is_moved else 1)
    begins = "live moves from a@1 to a@2" if is_moved else "live stays at a@1"
    score = f"{num_right / 24:.3f}"
    assert released.words == f"{begins}: a@2 has accuracy {score} and a@1 0.792 on the same 24 examples"
    assert released.as_dict()["comparison"]["other_score"] == pytest.approx(19 / 24)


def test_it_is_moved_to_all_the_same_if_one_says_so_and_the_score_is_told(registry: Registry, model: FakeModel) -> None:
    released = put_out(registry, model, 15, live_right=19, is_told=True)
    assert (released.is_moved, registry.resolve("a").number) == (True, 2)
    assert "a@2 has accuracy 0.625 and a@1 0.792" in released.words


def test_the_gate_is_asked_too_and_no_order_to_move_overrules_it(registry: Registry, model: FakeModel) -> None:
    gate = tuple(Example(f"held out {n}", LABELS[n % 2]) for n in range(4))
    run_with(model, promote(registry, "a", "live", 1, gate=GateRequest(gate)))
    model.digest_to_num_right[registry.resolve("a@2").digest] = 3
    for is_told in (False, True):
        released = put_out(registry, model, 24, live_right=10, is_told=is_told)
        assert (released.is_moved, registry.resolve("a").number) == (False, 1)
        assert "on the gate's examples" in released.words


@pytest.mark.parametrize("alias", ["live", "canary"])
def test_an_alias_that_means_nothing_yet_moves_without_a_comparison(
    backbone: Backbone, model: FakeModel, alias: str
) -> None:
    registry = Registry(MemoryStore(), backbone)
    version = registry.publish("new", publication(backbone, 1), alias=None)
    comparison = run_with(model, compare(registry, version, alias, measured(3), EXAMPLES))
    assert (comparison, model.asked) == (None, [])
    assert release(registry, version, alias, comparison, is_told=False).is_moved
    assert registry.resolve(f"new@{alias}") == version
    assert release(registry, version, None, None, is_told=False) == Release(None, False)


def test_a_version_that_is_live_already_is_not_compared_with_itself(registry: Registry, model: FakeModel) -> None:
    version = registry.resolve("a@1")
    assert run_with(model, compare(registry, version, "live", measured(3), EXAMPLES)) is None
    assert release(registry, version, "live", None, is_told=False).is_moved


def test_of_two_versions_that_share_an_alias_the_one_with_more_weight_counts(
    registry: Registry, model: FakeModel, backbone: Backbone
) -> None:
    third = registry.publish("a", publication(backbone, 3), alias=None)
    registry.set_alias("a", "live", {1: 0.2, third.number: 0.8})
    model.digest_to_num_right[third.digest] = 20
    assert put_out(registry, model, 19, live_right=1).words.startswith("live stays at a@3")


def test_a_label_that_the_live_version_lacks_is_its_error(
    registry: Registry, model: FakeModel, backbone: Backbone
) -> None:
    """Of 24 examples it has labels for 20, and 16 of these right."""
    labels = (*LABELS, "other")
    examples = (*EXAMPLES[:20], *(Example(f"more {n}", "other") for n in range(4)))
    version = registry.publish("a", publication(backbone, 5, labels), alias=None)
    model.digest_to_num_right[registry.resolve("a@1").digest] = 16
    found = measured(17, labels, examples)
    comparison = run_with(model, compare(registry, version, "live", found, examples))
    assert comparison.other_score == pytest.approx(16 / 24)
    assert "4 of which have labels that a@1 lacks" in comparison.in_words()
    assert release(registry, version, "live", comparison, is_told=False).is_moved


def test_labels_are_not_compared_with_texts(registry: Registry, model: FakeModel, backbone: Backbone) -> None:
    written = registry.publish("a", publication(backbone, 6, ()), alias=None)
    targets = [example.target for example in EXAMPLES]
    comparison = run_with(model, compare(registry, written, "live", Evaluation.of_texts(targets, targets), EXAMPLES))
    assert not comparison.is_passed
    released = release(registry, written, "live", comparison, is_told=False)
    assert "cannot be compared with it: one of them answers with labels, and the other writes" in released.words
    assert registry.resolve("a").number == 1
    assert release(registry, written, "live", comparison, is_told=True).is_moved


def test_texts_are_compared_by_the_metric_that_tuning_chose_by(model: FakeModel, backbone: Backbone) -> None:
    registry = Registry(MemoryStore(), backbone)
    for seed in range(2):
        registry.publish("a", publication(backbone, seed, ()), alias="live" if seed == 0 else None)
    version, targets = registry.resolve("a@2"), [example.target for example in EXAMPLES]
    found = Evaluation.of_texts([*targets[:12], *("wrong" for _ in range(12))], targets)
    model.digest_to_num_right[registry.resolve("a@1").digest] = 6
    for metric, name in (("exact_match", "exact_match"), ("loss", "rouge_l"), (None, "rouge_l")):
        comparison = run_with(model, compare(registry, version, "live", found, EXAMPLES, metric=metric))
        assert (comparison.metric, comparison.score, comparison.other_score) == (name, 0.5, 0.25)


def test_what_taught_it_is_not_a_rival(registry: Registry, model: FakeModel) -> None:
    """The examples' targets are the teacher's own answers: nothing could beat it on them."""
    live = registry.resolve("a@1")
    assert put_out(registry, model, 15, live_right=24, teacher=live.digest).is_moved
    assert model.asked == []


def test_an_alias_that_moved_after_the_comparison_stays(
    registry: Registry, model: FakeModel, backbone: Backbone
) -> None:
    version = registry.resolve("a@2")
    comparison = run_with(model, compare(registry, version, "live", measured(24), EXAMPLES))
    registry.publish("a", publication(backbone, 7), alias="live")
    released = release(registry, version, "live", comparison, is_told=False)
    assert released.words == "live stays at a@3, to which it moved in the meantime"
    assert registry.resolve("a").number == 3


def test_a_live_version_that_cannot_be_read_stays_and_the_reason_is_told(
    tmp_path: Path, model: FakeModel, backbone: Backbone
) -> None:
    registry = Registry(FileStore(tmp_path), backbone, max_cache_bytes=0)
    for seed in range(2):
        registry.publish("a", publication(backbone, seed), alias="live" if seed == 0 else None)
    damaged = tmp_path / "a/1/adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    released = put_out(registry, model, 24, live_right=1)
    assert released.words.startswith("live stays at a@1: a@2 cannot be compared with it: ")
    assert registry.resolve("a").number == 1


def test_a_live_version_that_has_no_room_for_an_answer_is_not_compared(registry: Registry) -> None:
    def refuse(_: Measurement) -> Evaluation:
        raise InvalidInput("prompt and answer together are too long")

    comparison = run_with(refuse, compare(registry, registry.resolve("a@2"), "live", measured(24), EXAMPLES))
    assert comparison.in_words() == "a@2 cannot be compared with it: prompt and answer together are too long"
