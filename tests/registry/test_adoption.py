"""Files that people drop into the folder of a running registry become versions, or are left alone with a reason."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.errors import BackboneMismatch, CorruptPrompt, NotFound, RegistryUnavailable
from app.model.backbone import Backbone
from app.registry.aliases import AliasTable
from app.registry.formats.foreign_file import read_checkpoint
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import PromptKind
from tests.support.models import character_tokenizer, tiny_backbone
from tests.support.prompts import memory_folder, random_prompt, write_checkpoint


@pytest.fixture
def root() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder / "prompts"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A PEFT checkpoint without a task.json."""
    write_checkpoint(tmp_path / "foreign", random_prompt(tiny_backbone(), seed=3), tiny_backbone())
    return tmp_path / "foreign"


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def registry(root: Path, backbone: Backbone) -> Registry:
    root.mkdir()
    return Registry(FileStore(root), backbone, settle_s=0)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_copied_in_is_served_without_a_restart(registry: Registry, root: Path, backbone: Backbone) -> None:
    with memory_folder() as elsewhere:
        version = Registry(FileStore(elsewhere), backbone).publish("mood", Publication(random_prompt(backbone)))
        shutil.copytree(elsewhere / "mood", root / "mood")
    registry.refresh()
    assert registry.resolve("mood") == version
    assert registry.prompt(version).digest == version.digest


def test_without_aliases_the_newest_version_is_live_until_an_alias_moves(
    registry: Registry, root: Path, backbone: Backbone
) -> None:
    for seed in range(2):
        registry.publish("mood", Publication(random_prompt(backbone, seed=seed)))
    (root / "mood" / "aliases.json").unlink()
    registry.refresh()
    assert registry.task("mood").aliases == {"live": 2}
    registry.publish("mood", Publication(random_prompt(backbone, seed=5)), alias=None)
    assert registry.task("mood").aliases == {"live": 2}
    assert json.loads((root / "mood" / "aliases.json").read_text())["aliases"] == {"live": {backbone.fingerprint: 2}}


@pytest.mark.parametrize("place", ["mood", "mood/1", "mood/7"])
def test_a_bare_peft_checkpoint_is_adopted_for_the_running_backbone(
    registry: Registry, root: Path, foreign: Path, backbone: Backbone, place: str
) -> None:
    before = snapshot(foreign)
    shutil.copytree(foreign, root / place)
    registry.refresh()
    version = registry.resolve("mood")
    assert version.number == (7 if place == "mood/7" else 1)
    assert version.backbone_fingerprint == backbone.fingerprint
    assert version.provenance == {"source": "peft", "peft_type": "PROMPT_TUNING", "base_model": "tiny-llama"}
    assert registry.prompt(version).digest == read_checkpoint(foreign, backbone).digest
    after = snapshot(root / "mood" / str(version.number))
    assert {name: after[name] for name in before} == before
    assert not (root / "mood" / "adapter_model.safetensors").exists()
    assert Registry(FileStore(root), None).resolve("mood") == version
    assert registry.faults() == {}


def test_a_checkpoint_dropped_next_to_versions_becomes_the_next_and_does_not_go_live(
    registry: Registry, root: Path, foreign: Path, backbone: Backbone
) -> None:
    registry.publish("mood", Publication(random_prompt(backbone)))
    for path in foreign.iterdir():
        shutil.copy(path, root / "mood")
    registry.refresh()
    assert registry.resolve("mood").number == 1
    assert registry.resolve("mood@2").digest == read_checkpoint(foreign, backbone).digest
    registry.refresh()
    assert len(registry.versions("mood")) == 2
    registry.delete_version("mood", 2)
    registry.refresh()
    assert len(registry.versions("mood")) == 1


def test_a_copy_whose_labels_the_tokenizer_cannot_tell_apart_is_not_adopted(root: Path, backbone: Backbone) -> None:
    """They were told apart when it was published, by another program or with another tokenizer."""
    Registry(FileStore(root), backbone).publish("a", Publication(random_prompt(backbone), labels=("\xe9", "\xfc")))
    shutil.copytree(root / "a" / "1", root / "mood" / "1")
    registry = Registry(FileStore(root), replace(backbone, tokenizer=character_tokenizer()), settle_s=0)
    assert '"\xe9" and "\xfc" are the same' in registry.faults()["mood/1"]
    with pytest.raises(CorruptPrompt):
        registry.resolve("mood@1")


@pytest.mark.parametrize("place", ["mood", "mood/1"])
def test_a_dropped_multitask_checkpoint_is_left_alone_and_told_how_to_be_added(
    registry: Registry, root: Path, foreign: Path, place: str
) -> None:
    tensors = {"prompt_embeddings": torch.randn(5, 32)}
    tensors |= {"prefix_task_cols": torch.randn(3, 5, 1), "prefix_task_rows": torch.randn(3, 1, 32)}
    save_file(tensors, foreign / "adapter_model.safetensors")
    said = json.loads((foreign / "adapter_config.json").read_text()) | {"peft_type": "MULTITASK_PROMPT_TUNING"}
    (foreign / "adapter_config.json").write_text(json.dumps(said))
    shutil.copytree(foreign, root / place)
    registry.refresh()
    assert "softswap tasks add FOLDER --task NAME --source-task 0" in registry.faults()[place]
    assert registry.tasks() == []
    assert snapshot(root / place) == snapshot(foreign)


def test_a_dropped_checkpoint_that_leaves_no_room_is_listed_with_the_reason(root: Path, backbone: Backbone) -> None:
    write_checkpoint(root / "mood", random_prompt(backbone, 200), backbone)
    registry = Registry(FileStore(root), backbone, settle_s=0, max_positions=128)
    assert "max_model_len is 128" in registry.faults()["mood/1"]
    assert Registry(FileStore(root), backbone).resolve("mood@1").num_virtual_tokens == 200


def test_a_prefix_checkpoint_is_adopted_too(registry: Registry, root: Path, backbone: Backbone) -> None:
    prompt = random_prompt(backbone, kind=PromptKind.KV)
    write_checkpoint(root / "mood" / "1", prompt, backbone)
    registry.refresh()
    assert registry.resolve("mood").digest == prompt.digest
    assert registry.resolve("mood").kind is PromptKind.KV


def test_an_adopted_version_is_bound_and_another_backbone_refuses_it(
    registry: Registry, root: Path, foreign: Path
) -> None:
    shutil.copytree(foreign, root / "mood")
    registry.refresh()
    other = Registry(FileStore(root), tiny_backbone("qwen2"), settle_s=0)
    with pytest.raises(NotFound, match="no version for tiny-qwen2; it has versions for tiny-llama"):
        other.resolve("mood")
    with pytest.raises(BackboneMismatch, match="made for the backbone tiny-llama, not for tiny-qwen2"):
        other.prompt(other.version("mood", 1))


def test_a_version_copied_from_another_task_keeps_its_backbone_and_says_where_it_is_from(
    registry: Registry, root: Path, backbone: Backbone
) -> None:
    prompt = random_prompt(backbone)
    original = registry.publish("mood", Publication(prompt, labels=["a", "b"], initial=prompt.rows))
    shutil.copytree(root / "mood", root / "copied")
    shutil.copytree(root / "mood" / "1", root / "dropped")
    registry.refresh()
    for task in ("copied", "dropped"):
        version = registry.resolve(task)
        assert (version.id, version.digest, version.labels) == (f"{task}@1", original.digest, ("a", "b"))
        assert version.provenance["copied_from"] == "mood@1"
        assert registry.prompt(version).digest == original.digest
        assert torch.equal(registry.initial(version), prompt.rows)
    assert registry.resolve("mood") == original


def test_a_number_that_was_given_before_is_not_given_to_a_dropped_folder(
    registry: Registry, root: Path, foreign: Path, backbone: Backbone
) -> None:
    for seed in range(2):
        registry.publish("mood", Publication(random_prompt(backbone, seed=seed)))
    registry.delete_version("mood", 1)
    shutil.copytree(foreign, root / "mood" / "1")
    registry.refresh()
    assert "given before" in registry.faults()["mood/1"]
    with pytest.raises(CorruptPrompt):
        registry.resolve("mood@1")


def test_a_half_copied_folder_is_served_only_when_it_is_complete(
    registry: Registry, root: Path, backbone: Backbone
) -> None:
    with memory_folder() as elsewhere:
        version = Registry(FileStore(elsewhere), backbone).publish("mood", Publication(random_prompt(backbone)))
        files = snapshot(elsewhere / "mood" / "1")
    target = root / "mood" / "1"
    target.mkdir(parents=True)
    for name in ("README.md", "task.json", "adapter_config.json", "adapter_model.safetensors"):
        for length in range(0, len(files[name]), 97):
            (target / name).write_bytes(files[name][:length])
            registry.refresh()
            with pytest.raises((NotFound, CorruptPrompt)):
                registry.resolve("mood")
        (target / name).write_bytes(files[name])
    registry.refresh()
    assert registry.prompt(registry.resolve("mood")).digest == version.digest
    assert registry.faults() == {}


@pytest.mark.parametrize("place", ["mood", "mood/1"])
def test_a_half_copied_foreign_checkpoint_is_adopted_only_when_it_is_complete(
    registry: Registry, root: Path, foreign: Path, place: str
) -> None:
    target = root / place
    target.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (foreign / name).read_bytes()
        for length in range(0, len(content), 61):
            (target / name).write_bytes(content[:length])
            registry.refresh()
            assert registry.tasks() == []
        (target / name).write_bytes(content)
    registry.refresh()
    assert registry.resolve("mood").digest == read_checkpoint(foreign, tiny_backbone()).digest


def test_a_foreign_checkpoint_still_being_written_is_left_alone(root: Path, foreign: Path, backbone: Backbone) -> None:
    """A copy that preallocates its file has the right size long before it has the right values."""
    shutil.copytree(foreign, root / "mood")
    registry = Registry(FileStore(root), backbone, settle_s=0.4)
    assert registry.tasks() == []
    assert "changing" in registry.faults()["mood"]
    deadline = time.monotonic() + 10
    while not registry.tasks() and time.monotonic() < deadline:
        time.sleep(0.05)
        registry.refresh()
    assert registry.resolve("mood").number == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "only prompts"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "pickle"),
        (
            lambda folder: save_file({"prompt_embeddings": torch.zeros(5, 31)}, folder / "adapter_model.safetensors"),
            "shape",
        ),
        (
            lambda folder: save_file(
                {"prompt_embeddings": torch.full((5, 32), torch.nan)}, folder / "adapter_model.safetensors"
            ),
            "finite",
        ),
    ],
)
def test_what_cannot_be_served_is_not_adopted_and_logged_once(
    registry: Registry,
    root: Path,
    foreign: Path,
    change: Callable[[Path], object],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(foreign)
    shutil.copytree(foreign, root / "mood")
    (root / "good").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            registry.refresh()
    assert reason in registry.faults()["mood"]
    assert len([record for record in caplog.records if reason in record.getMessage()]) == 1
    assert registry.tasks() == []


def test_a_server_without_a_backbone_adopts_nothing(root: Path, foreign: Path) -> None:
    shutil.copytree(foreign, root / "mood")
    offline = Registry(FileStore(root), None, settle_s=0)
    assert offline.tasks() == []
    assert "makes one" in offline.faults()["mood"]
    assert sorted(path.name for path in (root / "mood").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_names_that_no_task_can_have_are_skipped(registry: Registry, root: Path, foreign: Path) -> None:
    for name in ("Upper", ".hidden", "with space", "lost+found"):
        shutil.copytree(foreign, root / name)
    (root / "a-file").write_text("not a folder")
    (root / "empty").mkdir()
    (root / "mood" / "notes").mkdir(parents=True)
    registry.refresh()
    assert registry.tasks() == []
    assert registry.faults() == {}


# --- other changes that the registry did not make


def test_a_removed_folder_is_gone_and_the_rest_stays(registry: Registry, root: Path, backbone: Backbone) -> None:
    for task in ("a", "b"):
        for seed in range(2):
            registry.publish(task, Publication(random_prompt(backbone, seed=seed)))
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b" / "1")
    registry.refresh()
    assert [(summary.task, len(summary.versions)) for summary in registry.tasks()] == [("b", 1)]


def test_aliases_edited_in_place_are_seen(registry: Registry, root: Path, backbone: Backbone) -> None:
    for seed in range(2):
        registry.publish("a", Publication(random_prompt(backbone, seed=seed)))
    (root / "a" / "aliases.json").write_text('{"aliases": {"live": 1}}')
    registry.refresh()
    assert registry.resolve("a").number == 1
    assert registry.publish("a", Publication(random_prompt(backbone))).number == 3


def test_an_alias_of_a_removed_version_is_not_found(registry: Registry, root: Path, backbone: Backbone) -> None:
    for seed in range(2):
        registry.publish("a", Publication(random_prompt(backbone, seed=seed)))
    shutil.rmtree(root / "a" / "2")
    registry.refresh()
    with pytest.raises(NotFound):
        registry.resolve("a")
    assert registry.resolve("a@1").number == 1


def test_two_registries_on_one_folder_see_each_other(registry: Registry, root: Path, backbone: Backbone) -> None:
    other = Registry(FileStore(root), None)
    registry.publish("a", Publication(random_prompt(backbone, seed=0)))
    registry.publish("a", Publication(random_prompt(backbone, seed=1)))
    other.refresh()
    other.set_alias("a", "live", 1)
    registry.refresh()
    assert registry.resolve("a").number == 1
    other.delete_version("a", 2)
    assert registry.publish("a", Publication(random_prompt(backbone))).number == 3


def test_a_registry_whose_folder_vanishes_keeps_what_it_knew(
    registry: Registry, root: Path, backbone: Backbone
) -> None:
    version = registry.publish("a", Publication(random_prompt(backbone)))
    root.rename(root.with_name("unmounted"))
    with pytest.raises(RegistryUnavailable):
        registry.refresh()
    with pytest.raises(RegistryUnavailable):
        registry.publish("a", Publication(random_prompt(backbone)))
    assert not root.exists()
    assert registry.resolve("a") == version
    assert registry.prompt(version).digest == version.digest


def test_a_watcher_takes_in_what_is_dropped_and_survives_a_vanished_folder(
    registry: Registry, root: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    registry.publish("a", Publication(random_prompt(backbone)))
    registry.start_watching(0.02)
    try:
        root.rename(root.with_name("unmounted"))
        wait_for(lambda: "stays in service" in caplog.text)
        root.with_name("unmounted").rename(root)
        Registry(FileStore(root), backbone).publish("b", Publication(random_prompt(backbone)))
        wait_for(lambda: len(registry.tasks()) == 2)
    finally:
        registry.close()
    assert caplog.text.count("stays in service") == 1


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_read_only_registry_is_served(root: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed package. Root may write anywhere, so the system calls are made to refuse, not the mode."""
    import os

    writer = Registry(FileStore(root), backbone)
    version = writer.publish("a", Publication(random_prompt(backbone)))
    writer.publish("a", Publication(random_prompt(backbone)), alias=None)
    table = AliasTable.decode((root / "a" / "aliases.json").read_bytes(), {})
    (root / "a" / "aliases.json").write_bytes(table.changed(deleting=(2,)).encode())
    real_open = os.open

    def refuse(*_: object, **__: object) -> int:
        raise OSError(30, "Read-only file system")

    def open_to_read(path: object, flags: int, *rest: object, **options: object) -> int:
        return refuse() if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", open_to_read)
    for name in ("mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "open", refuse)
    registry = Registry(FileStore(root), backbone)
    assert registry.prompt(registry.resolve("a")).digest == version.digest
    for change in (
        lambda: registry.publish("a", Publication(random_prompt(backbone))),
        lambda: registry.set_alias("a", "other", 1),
        lambda: registry.delete_task("a"),
    ):
        with pytest.raises(RegistryUnavailable, match="cannot be written"):
            change()
    assert registry.task("a").aliases == {"live": 1}
    assert [version.number for version in registry.versions("a")] == [1]


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(
    registry: Registry, root: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for task in ("a", "b"):
        registry.publish(task, Publication(random_prompt(backbone)))
    real_scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == root / "a":
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    again = Registry(FileStore(root), backbone)
    assert [summary.task for summary in again.tasks()] == ["b"]
    assert "Permission denied" in again.faults()["a/aliases.json"]


# --- a folder with the backbone's own name


@pytest.mark.parametrize("place", ["", "1"], ids=["as a task", "as a version"])
def test_a_checkpoint_under_the_backbones_own_name_is_left_alone_with_a_reason(
    root: Path, foreign: Path, backbone: Backbone, place: str
) -> None:
    shutil.copytree(foreign, root / backbone.name / place)
    before = snapshot(root)
    registry = Registry(FileStore(root), backbone, settle_s=0)
    registry.refresh()
    assert "the backbone's own name" in registry.faults()[backbone.name]
    assert registry.tasks() == []
    with pytest.raises(NotFound, match="own name"):
        registry.resolve(f"{backbone.name}@1")
    with pytest.raises(RegistryUnavailable, match="own name"):
        registry.delete_task(backbone.name)
    assert {name: content for name, content in snapshot(root).items() if name != ".lock"} == before
    (root / backbone.name).rename(root / "mood")
    registry.refresh()
    assert registry.resolve("mood").number == 1
    assert registry.faults() == {}


def test_a_task_named_after_a_backbone_is_served_by_the_others_only(root: Path, backbone: Backbone) -> None:
    other = tiny_backbone("qwen2")
    root.mkdir()
    there = Registry(FileStore(root), other)
    (root / backbone.name).mkdir()
    version = there.publish("mood", Publication(random_prompt(other)))
    shutil.copytree(root / "mood" / "1", root / backbone.name / "1")
    there.refresh()
    here = Registry(FileStore(root), backbone)
    assert there.resolve(backbone.name).digest == version.digest
    assert there.faults() == {}
    assert "own name" in here.faults()[backbone.name]
    assert [record.task for record in here.tasks()] == ["mood"]


def test_an_empty_folder_with_the_backbones_own_name_is_no_fault(root: Path, backbone: Backbone) -> None:
    (root / backbone.name).mkdir(parents=True)
    (root / backbone.name / "notes.txt").write_text("nothing of a task")
    assert Registry(FileStore(root), backbone).faults() == {}


@pytest.mark.parametrize("name", ["tiny-llama-2", "tiny", "llama", "tiny.llama"])
def test_names_like_the_backbones_are_tasks(registry: Registry, root: Path, foreign: Path, name: str) -> None:
    shutil.copytree(foreign, root / name)
    registry.refresh()
    assert registry.resolve(name).number == 1
