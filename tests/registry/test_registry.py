"""Names, versions and aliases, over a store on disk and one in memory."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import BackboneMismatch, Conflict, CorruptPrompt, InvalidInput, NotFound
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.formats.binding import bind_text
from app.registry.formats.foreign_file import read_checkpoint
from app.registry.formats.manifest import Manifest
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore, Store
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.memory_store import MemoryStore
from tests.support.models import character_tokenizer, tiny_backbone
from tests.support.prompts import memory_folder, random_prompt, random_rows


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
    return Registry(store, backbone)


# --- publishing and naming


def test_what_is_published_is_there_for_the_next_process(store: Store, registry: Registry, backbone: Backbone) -> None:
    prompts = {
        "soft": random_prompt(backbone),
        "prefix": random_prompt(backbone, kind=PromptKind.KV),
        "words": bind_text("Is this kind?", backbone),
    }
    for task, prompt in prompts.items():
        registry.publish(
            task,
            Publication(
                prompt,
                template=Template("{input}: {target}"),
                labels=["no", "yes"],
                sampling={"stop": ("\n",), "logit_bias": {5: 1.0}},
                metrics={"accuracy": 0.5},
                tuning={"learning_rate": 0.3},
                data_sha256="d" * 64,
                provenance={"source": "test"},
                description="A task.",
            ),
        )
    again = Registry(store, backbone)
    assert [summary.task for summary in again.tasks()] == ["prefix", "soft", "words"]
    for task, prompt in prompts.items():
        version = again.resolve(task)
        assert version == registry.resolve(task)
        assert (version.id, version.digest, version.kind) == (f"{task}@1", prompt.digest, prompt.kind)
        assert (version.labels, version.template) == (("no", "yes"), Template("{input}: {target}"))
        assert version.sampling == {"stop": ("\n",), "logit_bias": {5: 1.0}}
        assert version.created_at == pytest.approx(time.time(), abs=60)
        loaded = again.prompt(version)
        assert (loaded.digest, loaded.text, loaded.token_ids) == (prompt.digest, prompt.text, prompt.token_ids)
        assert loaded.rows is prompt.rows or torch.equal(loaded.rows, prompt.rows)
        manifest = Manifest.decode(again.files(version)["task.json"])
        assert (manifest.tuning, manifest.data_sha256) == ({"learning_rate": 0.3}, "d" * 64)


def test_a_task_means_its_live_version_and_a_pin_stays(registry: Registry, backbone: Backbone) -> None:
    first = registry.publish("a", Publication(random_prompt(backbone, seed=1)))
    second = registry.publish("a", Publication(random_prompt(backbone, seed=2)))
    third = registry.publish("a", Publication(random_prompt(backbone, seed=3)), alias=None)
    assert [version.number for version in registry.versions("a")] == [1, 2, 3]
    assert registry.resolve("a") == registry.resolve("a@live") == second
    assert registry.resolve("a@1") == first
    assert registry.resolve(f"a@sha256:{third.digest[:8]}") == registry.resolve("a@3") == third
    registry.set_alias("a", "live", 1)
    assert registry.resolve("a") == first
    registry.set_alias("a", "canary", 3)
    assert registry.task("a").aliases == {"live": 1, "canary": 3}
    assert registry.resolve("a@canary") == third


def test_the_first_version_published_without_an_alias_is_not_live(registry: Registry, backbone: Backbone) -> None:
    registry.publish("a", Publication(random_prompt(backbone)), alias=None)
    with pytest.raises(NotFound):
        registry.resolve("a")
    assert registry.resolve("a@1").number == 1
    assert registry.tasks()[0].live is None


@pytest.mark.parametrize("name", ["b", "a@2", "a@canary", "a@sha256:00000000", "A", "a@@", ""])
def test_a_name_of_nothing_is_not_found(registry: Registry, backbone: Backbone, name: str) -> None:
    registry.publish("a", Publication(random_prompt(backbone)))
    with pytest.raises(NotFound):
        registry.resolve(name)


def test_a_digest_must_be_unique_to_be_a_name(registry: Registry, backbone: Backbone) -> None:
    prompt = random_prompt(backbone)
    registry.publish("a", Publication(prompt))
    registry.publish("a", Publication(prompt))
    assert registry.resolve(f"a@sha256:{prompt.digest[:8]}").digest == prompt.digest


def test_a_weighted_alias_shares_requests_by_its_weights(registry: Registry, backbone: Backbone) -> None:
    for seed in range(2):
        registry.publish("a", Publication(random_prompt(backbone, seed=seed)))
    registry.set_alias("a", "live", {1: 0.75, 2: 0.25})
    rng = random.Random(5)
    counts = Counter(registry.resolve("a", rng=rng).number for _ in range(4_000))
    assert counts[1] / 4_000 == pytest.approx(0.75, abs=0.03)
    assert [registry.resolve("a", rng=random.Random(7)).number for _ in range(5)] == [
        registry.resolve("a", rng=random.Random(7)).number
    ] * 5
    live = registry.tasks()[0].live
    assert live is not None
    assert live.number == 1
    assert {registry.resolve("a").number for _ in range(200)} == {1, 2}


def test_every_change_of_a_task_changes_its_etag_and_a_stale_one_is_a_conflict(
    registry: Registry, backbone: Backbone
) -> None:
    seen = set()
    prompt = random_prompt(backbone)
    with pytest.raises(Conflict):
        registry.publish("a", Publication(prompt), if_match="*")
    registry.publish("a", Publication(prompt))
    stale = registry.task("a").etag
    changes = [
        lambda etag: registry.publish("a", Publication(prompt), if_match=etag),
        lambda etag: registry.publish("a", Publication(prompt), alias=None, if_match="*"),
        lambda etag: registry.set_alias("a", "live", 1, if_match=etag),
        lambda etag: registry.set_alias("a", "live", 2, if_match=etag),
        lambda etag: registry.set_alias("a", "other", {1: 0.5, 2: 0.5}, if_match=etag),
        lambda etag: registry.delete_alias("a", "other", if_match=etag),
        lambda etag: registry.delete_version("a", 1, if_match=etag),
    ]
    for change in changes:
        etag = registry.task("a").etag
        assert etag not in seen
        seen.add(etag)
        change(etag)
    stale_changes = [
        lambda: registry.publish("a", Publication(prompt), if_match=stale),
        lambda: registry.set_alias("a", "live", 2, if_match=stale),
        lambda: registry.delete_alias("a", "live", if_match=stale),
        lambda: registry.delete_version("a", 3, if_match=stale),
        lambda: registry.delete_task("a", if_match=stale),
    ]
    before = registry.task("a").etag
    for change in stale_changes:
        with pytest.raises(Conflict):
            change()
    assert registry.task("a").etag == before


# --- deleting


def test_a_version_an_alias_names_is_not_deleted(registry: Registry, backbone: Backbone) -> None:
    for seed in range(3):
        registry.publish("a", Publication(random_prompt(backbone, seed=seed)))
    registry.set_alias("a", "canary", {1: 0.5, 2: 0.5})
    for number in (1, 2, 3):
        with pytest.raises(InvalidInput, match="alias"):
            registry.delete_version("a", number)
    registry.delete_alias("a", "canary")
    registry.delete_version("a", 2)
    assert [version.number for version in registry.versions("a")] == [1, 3]
    with pytest.raises(NotFound):
        registry.resolve("a@2")


def test_the_only_version_goes_with_the_task_and_not_alone_while_an_alias_names_it(
    registry: Registry, backbone: Backbone
) -> None:
    registry.publish("a", Publication(random_prompt(backbone)))
    with pytest.raises(InvalidInput, match="alias live names; delete the task instead"):
        registry.delete_version("a", 1)
    assert registry.resolve("a").number == 1
    registry.delete_alias("a", "live")
    registry.delete_version("a", 1)
    assert registry.tasks() == []
    for lookup in (registry.versions, registry.task, registry.resolve, registry.delete_task):
        with pytest.raises(NotFound):
            lookup("a")


def test_no_number_is_given_out_twice(store: Store, registry: Registry, backbone: Backbone) -> None:
    prompt = random_prompt(backbone)
    registry.publish("a", Publication(prompt))
    registry.publish("a", Publication(prompt))
    registry.publish("a", Publication(prompt), alias=None)
    registry.delete_version("a", 3)
    assert registry.publish("a", Publication(prompt)).number == 4
    registry.delete_task("a")
    registry = Registry(store, backbone)
    assert registry.publish("a", Publication(prompt)).id == "a@5"
    assert registry.task("a").aliases == {"live": 5}


def test_deleting_or_moving_what_is_not_there_is_not_found(registry: Registry, backbone: Backbone) -> None:
    registry.publish("a", Publication(random_prompt(backbone)))
    for change in (
        lambda: registry.delete_version("a", 2),
        lambda: registry.delete_version("b", 1),
        lambda: registry.delete_task("b"),
        lambda: registry.delete_alias("a", "canary"),
        lambda: registry.delete_alias("b", "live"),
        lambda: registry.set_alias("a", "canary", 2),
        lambda: registry.set_alias("a", "canary", {1: 0.5, 2: 0.5}),
        lambda: registry.set_alias("b", "live", 1),
    ):
        with pytest.raises(NotFound):
            change()
    assert [summary.task for summary in registry.tasks()] == ["a"]


def test_a_prompt_in_use_outlives_its_version(registry: Registry, backbone: Backbone) -> None:
    version = registry.publish("a", Publication(random_prompt(backbone)))
    prompt = registry.prompt(version)
    registry.delete_task("a")
    assert prompt.rows is not None
    assert bool(torch.isfinite(prompt.rows).all())


# --- refusals


def test_what_cannot_be_published_is_refused_and_leaves_nothing(registry: Registry, backbone: Backbone) -> None:
    prompt = random_prompt(backbone)
    for fields in (
        {"labels": ["a", "a"]},
        {"sampling": {"temperature": 9}},
        {"sampling": {"surprise": 1}},
        {"metrics": {"loss": float("nan")}},
        {"provenance": {"path": Path()}},
        {"description": "\ud800"},
        {"data_sha256": "short"},
    ):
        with pytest.raises(InvalidInput):
            registry.publish("a", Publication(prompt, **fields))
    with pytest.raises(InvalidInput):
        registry.publish("a", Publication(prompt), alias="Not an alias")
    for task in ("", "A", "../a", "a@1", "tiny-llama"):
        with pytest.raises(InvalidInput):
            registry.publish(task, Publication(prompt))
    assert registry.tasks() == []
    assert registry.publish("a", Publication(prompt)).number == 1


def test_a_prompt_of_another_backbone_is_refused_even_if_the_width_fits(
    registry: Registry, store: Store, backbone: Backbone
) -> None:
    other = tiny_backbone("qwen2")
    assert other.hidden_size == backbone.hidden_size
    with pytest.raises(BackboneMismatch):
        registry.publish("a", Publication(random_prompt(other)))
    version = Registry(store, other).publish("a", Publication(random_prompt(other)))
    registry.refresh()
    assert registry.version("a", 1) == version
    with pytest.raises(BackboneMismatch, match="made for the backbone tiny-qwen2, not for tiny-llama"):
        registry.prompt(version)


def test_a_prompt_that_leaves_no_room_for_text_is_refused(registry: Registry, backbone: Backbone) -> None:
    rows = torch.zeros(backbone.max_model_len, backbone.hidden_size)
    with pytest.raises(InvalidInput, match="512 positions"):
        registry.publish("a", Publication(TaskPrompt.from_embeddings(rows, backbone.fingerprint)))


def test_a_registry_without_a_backbone_shows_moves_and_deletes_but_does_not_publish(
    store: Store, registry: Registry, backbone: Backbone
) -> None:
    prompt = random_prompt(backbone)
    for _ in range(2):
        registry.publish("a", Publication(prompt))
    offline = Registry(store, None)
    assert offline.prompt(offline.resolve("a")).digest == prompt.digest
    offline.set_alias("a", "live", 1)
    offline.delete_version("a", 2)
    with pytest.raises(InvalidInput):
        offline.publish("a", Publication(prompt))
    registry.refresh()
    assert registry.resolve("a").number == 1


# --- reading back


def test_an_exported_version_is_a_checkpoint_with_the_same_values(
    registry: Registry, backbone: Backbone, tmp_path: Path
) -> None:
    for kind in (PromptKind.EMBEDDINGS, PromptKind.KV):
        prompt = random_prompt(backbone, kind=kind)
        version = registry.publish("a", Publication(prompt, initial=prompt.rows))
        files = registry.files(version)
        assert sorted(files) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors", "initial.safetensors", "task.json",
        ]  # fmt: skip
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        assert read_checkpoint(tmp_path, backbone).digest == version.digest
    text = registry.publish("a", Publication(bind_text("Kind?", backbone)))
    assert sorted(registry.files(text)) == ["README.md", "task.json"]


def test_the_rows_tuning_started_from_are_kept(store: Store, registry: Registry, backbone: Backbone) -> None:
    for kind in (PromptKind.EMBEDDINGS, PromptKind.KV):
        start = random_rows(backbone, seed=5, kind=kind)
        registry.publish("a", Publication(random_prompt(backbone, kind=kind), initial=start.double()))
        kept = Registry(store, None).initial(registry.resolve("a"))
        assert kept is not None
        assert torch.equal(kept, start)
    registry.publish("a", Publication(random_prompt(backbone)))
    assert registry.initial(registry.resolve("a")) is None


def test_rows_that_tuning_cannot_have_started_from_are_refused(registry: Registry, backbone: Backbone) -> None:
    rows = random_rows(backbone)
    for wrong in (rows[:-1], rows / 0, torch.zeros(3)):
        with pytest.raises(InvalidInput, match="initial"):
            registry.publish("a", Publication(random_prompt(backbone), initial=wrong))
    with pytest.raises(InvalidInput, match="initial"):
        registry.publish("a", Publication(bind_text("Kind?", backbone), initial=rows))


def test_damaged_initial_rows_are_refused_and_the_prompt_is_served(folder: Path, backbone: Backbone) -> None:
    prompt = random_prompt(backbone)
    Registry(FileStore(folder), backbone).publish("a", Publication(prompt, initial=prompt.rows))
    path = folder / "a" / "1" / "initial.safetensors"
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 7):
        content[place] ^= 1
        path.write_bytes(content)
        content[place] ^= 1
        registry = Registry(FileStore(folder), backbone)
        version = registry.resolve("a")
        assert registry.prompt(version).digest == prompt.digest
        for read in (registry.initial, registry.files):
            with pytest.raises(CorruptPrompt, match=r"initial\.safetensors"):
                read(version)
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptPrompt, match="not complete"):
        Registry(FileStore(folder), backbone).resolve("a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_flipped_bit_of_a_published_version_is_refused(
    folder: Path, backbone: Backbone, dtype: torch.dtype
) -> None:
    prompt = random_prompt(backbone).rounded(dtype)
    version = Registry(FileStore(folder), backbone).publish("a", Publication(prompt, labels=["x", "y"]))
    rng = random.Random(11)
    for name, num_flips in (("adapter_model.safetensors", 300), ("task.json", 100), ("adapter_config.json", 50)):
        path = folder / "a" / "1" / name
        content = path.read_bytes()
        for _ in range(num_flips):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            reader = Registry(FileStore(folder), backbone)
            try:
                loaded = reader.prompt(reader.resolve("a"))
            except CorruptPrompt:
                continue
            # the configuration has words that mean nothing here, such as the name of the base model
            assert name == "adapter_config.json"
            assert loaded.digest == version.digest
        path.write_bytes(content)


def test_a_flip_in_a_running_server_is_refused_at_the_next_load(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone, max_cache_bytes=0)
    version = registry.publish("a", Publication(random_prompt(backbone)))
    registry.prompt(version)
    path = folder / "a" / "1" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptPrompt):
        registry.prompt(version)
    path.unlink()
    with pytest.raises(CorruptPrompt, match="missing"):
        registry.prompt(version)


def test_a_corrupt_version_is_refused_and_the_rest_is_served(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    for task in ("a", "b"):
        for seed in range(2):
            registry.publish(task, Publication(random_prompt(backbone, seed=seed)))
    (folder / "a" / "2" / "task.json").write_bytes(b"{}")
    again = Registry(FileStore(folder), backbone)
    with pytest.raises(CorruptPrompt, match="a@2"):
        again.resolve("a")
    assert list(again.faults()) == ["a/2"]
    for name in ("a@1", "b"):
        again.prompt(again.resolve(name))
    again.set_alias("a", "live", 1)
    again.delete_version("a", 2)
    assert again.faults() == {}
    assert again.publish("a", Publication(random_prompt(backbone))).number == 3


def test_a_version_moved_to_another_number_is_not_served_as_that(folder: Path, backbone: Backbone) -> None:
    running = Registry(FileStore(folder), backbone, max_cache_bytes=0)
    first = running.publish("a", Publication(random_prompt(backbone, seed=1)))
    running.publish("a", Publication(random_prompt(backbone, seed=2)))
    (folder / "a" / "1").rename(folder / "a" / "tmp")
    (folder / "a" / "2").rename(folder / "a" / "1")
    (folder / "a" / "tmp").rename(folder / "a" / "2")
    with pytest.raises(CorruptPrompt):
        running.prompt(first)
    again = Registry(FileStore(folder), backbone)
    for name in ("a", "a@1", "a@2"):
        with pytest.raises(CorruptPrompt):
            again.resolve(name)


def test_damaged_aliases_leave_pins_in_service_and_what_a_server_knew(folder: Path, backbone: Backbone) -> None:
    registry = Registry(FileStore(folder), backbone)
    registry.publish("a", Publication(random_prompt(backbone)))
    content = (folder / "a" / "aliases.json").read_bytes()
    (folder / "a" / "aliases.json").write_bytes(content.replace(b'": 1\n', b'": 9\n'))
    registry.refresh()
    assert registry.resolve("a").number == 1
    again = Registry(FileStore(folder), backbone)
    assert again.resolve("a@1").number == 1
    with pytest.raises(CorruptPrompt, match="aliases"):
        again.resolve("a")
    for writer in (registry, again):
        assert list(writer.faults()) == ["a/aliases.json"]
        with pytest.raises(CorruptPrompt):
            writer.publish("a", Publication(random_prompt(backbone)))
    (folder / "a" / "aliases.json").write_bytes(content)
    again.refresh()
    assert again.resolve("a").number == 1
    assert again.faults() == {}


def test_the_memory_for_prompts_is_bounded(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, backbone, max_cache_bytes=20_000)
    versions = [registry.publish(f"t{i}", Publication(random_prompt(backbone, seed=i))) for i in range(20)]
    for _ in range(2):
        for version in versions:
            assert registry.prompt(version).digest == version.digest
            held = [prompt for each in versions if (prompt := registry.loaded_prompt(each))]
            assert sum(prompt.num_bytes for prompt in held) <= 20_000
            assert 0 < len(held) < 20


def test_a_text_prompt_is_refused_if_the_tokenizer_reads_it_differently(store: Store, backbone: Backbone) -> None:
    prompt = TaskPrompt.from_text("Kind?", [5, 6, 7], backbone.fingerprint)
    with pytest.raises(BackboneMismatch, match="publish it again"):
        Registry(store, backbone).publish("a", Publication(prompt))


def test_readers_never_wait_for_a_writer(store: Store, registry: Registry, backbone: Backbone) -> None:
    registry.publish("a", Publication(random_prompt(backbone)))
    with store.lock():
        writer = threading.Thread(target=lambda: registry.set_alias("a", "other", 1))
        writer.start()
        time.sleep(0.05)
        started = time.perf_counter()
        for _ in range(100):
            registry.resolve("a")
            registry.tasks()
        assert time.perf_counter() - started < 0.5
        assert "other" not in registry.task("a").aliases
    writer.join()
    assert registry.task("a").aliases["other"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", [PromptKind.EMBEDDINGS, PromptKind.KV])
def test_a_published_tensor_is_stored_exactly_in_as_little_room_as_can_be(
    store: Store, registry: Registry, backbone: Backbone, dtype: torch.dtype, kind: PromptKind
) -> None:
    import safetensors.torch

    rows = random_rows(backbone, kind=kind)
    prompt = TaskPrompt.from_rows(kind, rows.to(dtype), backbone.fingerprint)
    version = registry.publish("a", Publication(prompt, initial=rows + 1))
    files = registry.files(version)
    tensors = safetensors.torch.load(files["adapter_model.safetensors"])
    assert list(tensors) == ["prompt_embeddings"]
    assert tensors["prompt_embeddings"].dtype is dtype
    again = Registry(store, backbone)
    loaded, initial = again.prompt(again.resolve("a")), again.initial(again.resolve("a"))
    assert loaded.rows is not None
    assert initial is not None
    assert torch.equal(loaded.rows, rows.to(dtype).float())
    assert (loaded.digest, loaded.rows.dtype) == (prompt.digest, torch.float32)
    assert torch.equal(initial, (rows + 1).to(dtype).float())
    assert safetensors.torch.load(files["initial.safetensors"])["initial_rows"].dtype is dtype


def test_initial_values_that_the_prompts_dtype_cannot_hold_stay_in_float32(
    registry: Registry, backbone: Backbone
) -> None:
    half = TaskPrompt.from_embeddings(random_rows(backbone).half(), backbone.fingerprint)
    start = torch.full((5, 32), 1e5)
    registry.publish("a", Publication(half, initial=start))
    assert torch.equal(registry.initial(registry.resolve("a")), start)


def test_an_export_may_leave_out_the_rows_that_tuning_started_from(
    registry: Registry, backbone: Backbone, folder: Path
) -> None:
    prompt = random_prompt(backbone)
    version = registry.publish("a", Publication(prompt, initial=prompt.rows, labels=("no", "yes")))
    place = folder / "shipped" / "a" / "1"
    place.mkdir(parents=True)
    for name, content in registry.files(version, with_initial=False).items():
        (place / name).write_bytes(content)
    assert not (place / "initial.safetensors").exists()
    shipped = Registry(FileStore(folder / "shipped"), backbone)
    assert shipped.faults() == {}
    tensor = (place / "adapter_model.safetensors").stat().st_size
    assert shipped.resolve("a") == replace(version, num_bytes=tensor)
    assert tensor < version.num_bytes
    assert shipped.prompt(version).digest == prompt.digest
    assert shipped.initial(version) is None
    assert shipped.files(version, with_initial=False) == shipped.files(version)


# --- names that mean a model on some server


def test_a_new_task_gets_no_name_of_a_model_and_one_that_is_there_keeps_it(store: Store, backbone: Backbone) -> None:
    other = tiny_backbone("qwen2")
    here, there = Registry(store, backbone), Registry(store, other)
    there.publish("mood", Publication(random_prompt(other)))
    early = here.publish("tiny-qwen", Publication(random_prompt(backbone)))
    here.refresh()
    for name, reason in ((backbone.name, "own name"), (other.name, "model's name"), ("demo", "model's name")):
        for attempt in (
            lambda name=name: here.require_names(name, "live"),
            lambda name=name: here.publish(name, Publication(random_prompt(backbone))),
        ):
            with pytest.raises(InvalidInput, match=reason) as refused:
                attempt()
            assert refused.value.param == "task"
    third = Registry(store, replace(other, name="tiny-qwen"))
    third.publish("mood", Publication(random_prompt(other)))
    here.refresh()
    assert here.publish("tiny-qwen", Publication(random_prompt(backbone, seed=1))).number == early.number + 1


# --- what the server that looks could not answer


def test_labels_that_cannot_be_told_apart_are_not_published_and_live_stays(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, replace(backbone, tokenizer=character_tokenizer()))
    first = registry.publish("mood", Publication(random_prompt(backbone), labels=("bad", "good")))
    faces = ("\N{FROWNING FACE WITH OPEN MOUTH}", "\N{SLIGHTLY SMILING FACE}")
    for alias in ("live", "canary", None):
        with pytest.raises(InvalidInput, match="are the same to the tokenizer") as refused:
            registry.publish("mood", Publication(random_prompt(backbone), labels=faces), alias=alias)
        assert refused.value.param == "labels"
    assert registry.resolve("mood") == first
    assert registry.versions("mood") == [first]


def test_a_prompt_that_leaves_no_room_is_not_published_and_live_stays(store: Store, backbone: Backbone) -> None:
    registry = Registry(store, backbone, max_positions=128)
    first = registry.publish("mood", Publication(random_prompt(backbone, 125)))
    for num_rows in (126, 127, 128, 200):
        with pytest.raises(InvalidInput, match="max_model_len is 128"):
            registry.publish("mood", Publication(random_prompt(backbone, num_rows)))
    assert registry.resolve("mood") == first
    assert registry.versions("mood") == [first]


def test_a_version_that_leaves_no_room_is_listed_with_the_reason_and_never_meant(
    store: Store, backbone: Backbone
) -> None:
    roomy = Registry(store, backbone)
    long = roomy.publish("mood", Publication(random_prompt(backbone, 200)))
    roomy.publish("mood", Publication(random_prompt(backbone, 20)))
    narrow = Registry(store, backbone, max_positions=128)
    assert [version.number for version in narrow.versions("mood")] == [1, 2]
    [(place, reason)] = narrow.faults().items()
    assert place == "mood/1"
    assert "max_model_len is 128" in reason
    for use in (
        lambda: narrow.prompt(long),
        lambda: narrow.loaded_prompt(long),
        lambda: narrow.set_alias("mood", "live", 1),
        lambda: narrow.set_alias("mood", "canary", {1: 0.5, 2: 0.5}),
    ):
        with pytest.raises(InvalidInput, match=r"mood@1 cannot be served: 200 virtual tokens.* is 128"):
            use()
    assert narrow.resolve("mood").number == 2
    assert narrow.prompt(narrow.resolve("mood")).num_virtual_tokens == 20
    assert roomy.prompt(long).digest == long.digest
    assert roomy.faults() == {}
    narrow.delete_version("mood", 1)
    assert narrow.faults() == {}


def test_a_folder_looked_at_without_a_backbone_or_with_another_says_nothing_about_room(
    store: Store, backbone: Backbone
) -> None:
    Registry(store, backbone).publish("mood", Publication(random_prompt(backbone, 200)))
    assert Registry(store, None, max_positions=128).faults() == {}
    assert Registry(store, tiny_backbone("qwen2"), max_positions=128).faults() == {}


def test_no_server_has_more_room_than_its_backbone(store: Store, backbone: Backbone) -> None:
    with pytest.raises(InvalidInput, match="max_model_len is 512"):
        Registry(store, backbone, max_positions=4096).publish("mood", Publication(random_prompt(backbone, 510)))
