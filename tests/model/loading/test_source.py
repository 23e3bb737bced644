"""What `--model` names is found, or refused with what to do, by looking at names and headers only."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.loading.source import find_model
from app.settings import DEMO_BACKBONE
from tests.support.gguf_files import build_model, write_gguf
from tests.support.models import tiny_backbone


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(model: str) -> str:
    began_s = time.perf_counter()
    with pytest.raises(InvalidInput) as caught:
        find_model(model, Path("cache"))
    assert time.perf_counter() - began_s < 1
    assert caught.value.param == "model"
    return caught.value.message


def test_a_name_of_the_catalog_is_taken_before_a_folder_of_that_name(folder: Path) -> None:
    (folder / "demo").mkdir()
    assert find_model("demo", folder).path == DEMO_BACKBONE
    assert find_model("smollm2-135m-instruct", folder).path == folder / "smollm2-135m-instruct.gguf"
    assert "there is no config.json in demo" in refusal("./demo")


def test_folders_files_and_hub_ids_keep_their_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_backbone().model.save_pretrained(folder / "tiny")
    write_gguf(folder / "Small-1B.Q8_0.gguf", build_model("llama"))
    monkeypatch.setenv("HOME", str(folder))
    for named in ("tiny", "./tiny/", str(folder / "tiny"), "~/tiny"):
        assert find_model(named, folder).name == "tiny"
    assert find_model("Small-1B.Q8_0.gguf", folder).name == "Small-1B.Q8_0"
    for named in ("gpt2", "Qwen/Qwen3-0.6B", "a/b"):
        assert find_model(named, folder) == find_model(named, folder)
        assert (find_model(named, folder).name, find_model(named, folder).path) == (named, None)


@pytest.mark.parametrize("model", ["/nope", "./no/such/folder", "../nope", "~/nope", "nope.gguf", "a/b/c", "a/b.gguf"])
def test_a_path_that_leads_nowhere_is_asked_of_no_hub(model: str, folder: Path) -> None:
    assert refusal(model) == f"there is no {model}"


@pytest.mark.parametrize(
    ("model", "reason"), [("x" * 5000, "File name too long"), ("~no-such-user/model", "Could not determine home")]
)
def test_what_cannot_be_looked_at_is_told_why(model: str, reason: str, folder: Path) -> None:
    assert refusal(model).startswith(f"{model[:100]} cannot be read ({reason}")


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("smolm2", "smollm2-135m-instruct"),
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("smollm2", "smollm2-135m-instruct"),
        ("smollm2-135m", "smollm2-135m-instruct"),
        ("Demo", "demo"),
        ("demos", "demo"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_one_that_was_meant(model: str, meant: str, folder: Path) -> None:
    assert refusal(model) == f"there is no model {model}; did you mean {meant}?"


@pytest.mark.parametrize("model", ["spaces in it", "a b/c", "-x", "é", "a\nb"])
def test_what_cannot_be_a_name_is_told_what_can(model: str, folder: Path) -> None:
    assert "give a name that `softswap models` lists, a folder, a .gguf file, or a hub id" in refusal(model)


def test_an_empty_folder_is_told_what_a_model_is(folder: Path) -> None:
    (folder / "emptydir").mkdir()
    assert refusal("emptydir").startswith("there is no config.json in emptydir; a model is a folder with config.json")


def test_a_folder_without_weights_and_an_adapter_are_told_apart(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert refusal(str(folder)).endswith("has no .safetensors weights; pickled weights are never opened")
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "is an adapter and not a model; `softswap tasks add`" in refusal(str(folder))


def test_one_gguf_file_in_a_folder_is_the_model_and_several_must_be_chosen_from(folder: Path) -> None:
    write_gguf(folder / "tiny.gguf", build_model("llama"))
    (folder / "config.json").write_text("{}")  # as hubs keep it next to a .gguf file
    assert find_model(str(folder), folder).path == folder / "tiny.gguf"
    for number in range(6):
        (folder / f"part{number}.gguf").write_bytes(b"")
    message = refusal(str(folder))
    assert message.startswith(f"there are 7 .gguf files in {folder}; name one of them: part0.gguf, part1.gguf")
    assert message.endswith("part4.gguf, ...")


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "weights.bin"])
def test_a_file_of_another_kind_is_no_model(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"x")
    assert refusal(name) == f"{name} is a file; name its folder, or a .gguf file"


def test_a_catalog_model_that_is_not_here_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="is not here yet; `softswap pull smollm2-135m-instruct` fetches it"):
        Backbone.load("smollm2-135m-instruct", cache=folder)


def test_a_pulled_file_that_is_not_the_catalogs_is_refused(folder: Path) -> None:
    write_gguf(folder / "smollm2-135m-instruct.gguf", build_model("llama"))
    with pytest.raises(InvalidInput, match="not the file that the catalog calls smollm2-135m-instruct; `softswap pull"):
        Backbone.load("smollm2-135m-instruct", cache=folder, device="cpu")
