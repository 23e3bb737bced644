"""Gates and recorded evaluations: what the registry refuses, keeps and forgets, over a store on disk and in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import Conflict, CorruptPrompt, GateFailed, InvalidInput, NotFound
from app.model.backbone import Backbone
from app.registry.aliases import Gate
from app.registry.kept.evaluations import MAX_EVALUATIONS, RecordedEvaluation
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore, Store
from app.registry.version import Version
from tests.support.memory_store import MemoryStore
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder, random_prompt

EXAMPLES = b'["a film", "yes"]\n["a play", "no"]\n'
DATA = hashlib.sha256(EXAMPLES).hexdigest()
GATE = Gate(DATA, "accuracy")


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with memory_folder() as folder:
        yield FileStore(folder / "prompts") if request.param == "file" else MemoryStore()


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def registry(store: Store, backbone: Backbone) -> Registry:
    """Task a: version 1 is live, gated by GATE, and scores 0.8; 2 scores 0.7 and 3 scores 0.9; 4 was never measured."""
    opened = Registry(store, backbone)
    fill(opened, backbone)
    return opened


def fill(registry: Registry, backbone: Backbone) -> None:
    for seed, accuracy in enumerate([0.8, 0.7, 0.9, None]):
        version = registry.publish("a", Publication(random_prompt(backbone, seed=seed)), alias=None)
        if accuracy is not None:
            registry.record_evaluation(version, score_of(version, accuracy))
    registry.set_alias("a", "live", 1, gate=GATE, gate_examples=EXAMPLES)


def score_of(version: Version, accuracy: float, data: str = DATA) -> RecordedEvaluation:
    return RecordedEvaluation(digest=version.digest, data_sha256=data, metrics={"accuracy": accuracy})


# --- moving an alias


def test_a_version_that_scores_lower_is_refused_and_nothing_moves(store: Store, registry: Registry) -> None:
    etag = registry.task("a").etag
    with pytest.raises(GateFailed, match=r"version 2 has accuracy 0\.7000.* version 1, .* 0\.8000; force"):
        registry.set_alias("a", "live", 2)
    assert (registry.task("a").etag, registry.resolve("a").number) == (etag, 1)
    registry.set_alias("a", "live", 3)
    with pytest.raises(GateFailed, match="version 1 has accuracy"):
        registry.set_alias("a", "live", 1)
    assert Registry(store, None).resolve("a").number == 3


def test_a_version_without_a_score_is_refused(registry: Registry) -> None:
    with pytest.raises(GateFailed, match="version 4 has no accuracy on the gate's examples yet"):
        registry.set_alias("a", "live", 4)
    version = registry.resolve("a@4")
    registry.record_evaluation(version, score_of(version, 1.0, data="e" * 64))
    with pytest.raises(GateFailed, match="version 4 has no accuracy"):
        registry.set_alias("a", "live", 4)
    registry.record_evaluation(version, score_of(version, 0.8))
    registry.set_alias("a", "live", 4)


def test_force_moves_what_the_gate_refuses_and_keeps_the_gate(registry: Registry) -> None:
    registry.set_alias("a", "live", 4, force=True)
    assert registry.resolve("a").number == 4
    assert registry.task("a").gates.get("live") == GATE


def test_a_tolerance_lets_a_version_score_that_much_lower(registry: Registry) -> None:
    for tolerance, is_refused in ((0.05, True), (0.11, False)):
        gate = Gate(DATA, "accuracy", tolerance)
        registry.set_alias("a", "live", 1, gate=gate, gate_examples=EXAMPLES, force=True)
        if is_refused:
            with pytest.raises(GateFailed):
                registry.set_alias("a", "live", 2)
        else:
            registry.set_alias("a", "live", 2)


def test_of_two_versions_by_weight_each_newcomer_must_pass_and_the_heavier_is_the_measure(registry: Registry) -> None:
    with pytest.raises(GateFailed, match="version 2"):
        registry.set_alias("a", "live", {1: 0.9, 2: 0.1})
    registry.set_alias("a", "live", {1: 0.2, 3: 0.8})
    with pytest.raises(GateFailed, match="version 1"):
        registry.set_alias("a", "live", 1)
    registry.set_alias("a", "live", 3)


def test_other_aliases_and_new_ones_move_freely(registry: Registry) -> None:
    registry.set_alias("a", "canary", 2)
    registry.set_alias("a", "canary", 4)
    other = Gate(DATA, "accuracy")
    registry.set_alias("a", "new", 2, gate=other, gate_examples=EXAMPLES)
    assert registry.task("a").gates.get("new") == other


def test_a_gate_counts_for_the_move_it_comes_with(registry: Registry) -> None:
    registry.set_alias("a", "canary", 1)
    with pytest.raises(GateFailed):
        registry.set_alias("a", "canary", 2, gate=GATE, gate_examples=EXAMPLES)
    assert registry.task("a").gates.get("canary") is None


# --- publishing onto a gated alias


def test_a_publication_onto_a_gated_alias_needs_a_score_that_passes(registry: Registry, backbone: Backbone) -> None:
    prompt = random_prompt(backbone, seed=9)

    def publish(*evaluations: RecordedEvaluation, force: bool = False) -> Version:
        return registry.publish("a", Publication(prompt), evaluations=evaluations, force=force)

    def measured(accuracy: float) -> RecordedEvaluation:
        return RecordedEvaluation(digest=prompt.digest, data_sha256=DATA, metrics={"accuracy": accuracy})

    for evaluations in ((), (measured(0.79),)):
        with pytest.raises(GateFailed, match="version 5 has"):
            publish(*evaluations)
        assert [version.number for version in registry.versions("a")] == [1, 2, 3, 4]
    assert publish(measured(0.8)).number == 5
    assert registry.resolve("a").number == 5
    assert [each.metrics for each in registry.evaluations.of_version(registry.resolve("a"))] == [{"accuracy": 0.8}]
    assert publish(force=True).number == 6
    assert registry.publish("a", Publication(prompt), alias=None).number == 7
    assert registry.resolve("a").number == 6


# --- what is kept


def test_gates_and_scores_are_there_for_the_next_process(store: Store, registry: Registry) -> None:
    again = Registry(store, None)
    assert again.task("a").gates.get("live") == GATE
    assert again.evaluations.gate_examples("a", GATE) == EXAMPLES
    assert again.tasks()[0].gates == {"live": GATE}
    found = again.evaluations.find(again.resolve("a@3"), DATA)
    assert found is not None
    assert found.metrics == {"accuracy": 0.9}
    assert again.evaluations.of_version(again.resolve("a@4")) == []


def test_a_table_without_gates_is_one_of_an_earlier_softswap(registry: Registry) -> None:
    from app.registry.aliases import AliasTable

    assert AliasTable.decode(b'{"aliases": {"live": 1}}', {}).gates == {}


@pytest.mark.parametrize("data_sha256", ["../../etc/passwd", "x" * 64, ""])
def test_a_gate_written_by_hand_cannot_name_another_file(data_sha256: str) -> None:
    from app.registry.aliases import AliasTable

    gate = f'{{"data_sha256": "{data_sha256}", "metric": "accuracy"}}'
    with pytest.raises(CorruptPrompt):
        AliasTable.decode(f'{{"gates": {{"live": {gate}}}}}'.encode(), {})


def test_examples_stay_as_long_as_a_gate_uses_them(store: Store, registry: Registry) -> None:
    def kept() -> list[str]:
        return [name for name in store.entries("a/evaluations") if name.endswith(".jsonl")]

    registry.set_alias("a", "canary", 1, gate=GATE, gate_examples=EXAMPLES)
    registry.delete_gate("a", "live")
    assert kept() == [f"{DATA}.jsonl"]
    assert registry.task("a").gates.get("live") is None
    registry.set_alias("a", "live", 2)
    other = b'["other", "no"]\n'
    registry.set_alias("a", "canary", 1, gate=Gate(hashlib.sha256(other).hexdigest(), "accuracy"), gate_examples=other)
    assert kept() == [f"{hashlib.sha256(other).hexdigest()}.jsonl"]
    registry.delete_alias("a", "canary")
    assert kept() == []
    with pytest.raises(NotFound):
        registry.delete_gate("a", "live")


def test_what_is_deleted_takes_its_evaluations_with_it(store: Store, registry: Registry) -> None:
    registry.delete_version("a", 2)
    assert sorted(name[0] for name in store.entries("a/evaluations") if name.endswith(".json")) == ["1", "3"]
    registry.delete_task("a")
    assert sorted(store.entries("a")) == ["aliases.json"]


def test_other_examples_than_the_gate_names_are_refused(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="not those the gate names"):
        registry.set_alias("a", "canary", 1, gate=GATE, gate_examples=b"other")
    assert "canary" not in registry.task("a").aliases


def test_damaged_examples_are_refused_and_a_damaged_score_is_none(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    fill(registry, backbone)
    for path in (folder / "a" / "evaluations").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(CorruptPrompt, match="attach the gate again"):
        registry.evaluations.gate_examples("a", GATE)
    with pytest.raises(GateFailed, match="version 1 has no accuracy"):
        registry.set_alias("a", "live", 3)
    assert registry.evaluations.of_version(registry.resolve("a@3")) == []


@pytest.mark.parametrize("damaged", [b"", EXAMPLES[:-1], EXAMPLES.replace(b"film", b"fi1m")])
def test_attaching_a_gate_again_repairs_its_examples(store: Store, registry: Registry, damaged: bytes) -> None:
    store.replace(f"a/evaluations/{DATA}.jsonl", damaged)
    with pytest.raises(CorruptPrompt):
        registry.evaluations.gate_examples("a", GATE)
    registry.set_alias("a", "live", 1, gate=GATE, gate_examples=EXAMPLES)
    assert registry.evaluations.gate_examples("a", GATE) == EXAMPLES


def test_a_score_of_another_prompt_under_the_same_number_is_none(folder: Path, backbone: Backbone) -> None:
    for name, seed in (("one", 0), ("two", 100)):
        registry = Registry(FileStore(folder / name), backbone)
        version = registry.publish("a", Publication(random_prompt(backbone, seed=seed)))
        registry.record_evaluation(version, score_of(version, 0.5))
    stolen = folder / "one" / "a" / "evaluations"
    (folder / "two" / "a" / "evaluations" / f"1-{DATA}.json").write_bytes((stolen / f"1-{DATA}.json").read_bytes())
    assert registry.evaluations.find(registry.resolve("a"), DATA) is None


def test_figures_on_the_same_examples_are_replaced_and_a_version_keeps_a_limited_number(
    store: Store, backbone: Backbone
) -> None:
    registry = Registry(store, backbone)
    version = registry.publish("b", Publication(random_prompt(backbone)))
    for number in range(MAX_EVALUATIONS):
        registry.record_evaluation(version, score_of(version, 0.5, data=f"{number:064x}"))
    registry.record_evaluation(version, score_of(version, 0.6, data=f"{3:064x}"))
    assert len(registry.evaluations.of_version(version)) == MAX_EVALUATIONS
    with pytest.raises(InvalidInput, match="at most"):
        registry.record_evaluation(version, score_of(version, 0.5, data="f" * 64))


def test_nothing_is_recorded_of_a_version_that_is_gone(registry: Registry, store: Store) -> None:
    version = registry.resolve("a@4")
    registry.delete_version("a", 4)
    with pytest.raises(NotFound):
        registry.record_evaluation(version, score_of(version, 0.5))


def test_if_match_guards_gates_too(registry: Registry) -> None:
    etag = registry.task("a").etag
    registry.delete_gate("a", "live", if_match=etag)
    with pytest.raises(Conflict):
        registry.set_alias("a", "live", 1, gate=GATE, gate_examples=EXAMPLES, if_match=etag)
