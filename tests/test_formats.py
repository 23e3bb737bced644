"""What earlier versions wrote is still read: the registry, the state folder, and runs that were interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from app.engine.threads.device_lease import own_device
from app.jobs.files import Purpose
from app.jobs.job import Job, JobStatus, Order
from app.model.backbone import Backbone
from app.registry.formats.manifest import Manifest
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import PromptKind
from app.tuning.job.service import TuningService
from tests.support.tuning_jobs import all_events, curve, wait_for

FORMAT_1 = Path(__file__).parent / "data" / "format_1"
FINGERPRINT = "e6e4987b8758657bc5672aa30c9a556692e5f9311dbaa613e7a1831afc1f593b"
EXAMPLES_SHA256 = "1b78143af0bbc69f576b9a9d34dd643a30959d56f9abfdf4c486924a1e030f21"
VERSION_TO_DIGEST = {
    "brief@1": "d8397fa9d73575bb432dd116a3890e5cde4947be3f79744a0c4a052c889b0e52",
    "headlines@1": "13f8e2536d2562b9600740ca584d787639d391306fbc69b2b375b00a3583ff7a",
    "likes@6": "a27c2c1616a2678c88a7c5a9ae3410085939c9cd0094c2f829b3cb093011f673",
    "sentiment@1": "8301ec9d30b17bbd9157415e9e8f313bfdbffc66e3f07d2c6db6e1ccc53508ff",
    "sentiment@2": "e292fd5798a34178a9e55e1c277e7e2d87c842a3f4925bacb1b547fda0431118",
    "sentiment@3": "e55170236b5d4e4ee02e8c70dbfbe354c08ea5287c5a2dec2e12fdb78f257368",
    "short@3": "e48ef362fd0c4d1fc54219f0e78bc690cfe98e7e31d03601d5bfc2637842c6d7",
}
STATUSES = {
    "likes": JobStatus.SUCCEEDED,
    "short": JobStatus.SUCCEEDED,
    "unwanted": JobStatus.CANCELLED,
    "paused": JobStatus.PAUSED,
    "taught": JobStatus.PAUSED,
    "crashed": JobStatus.QUEUED,  # it was running: opening the folder queues it again
}


@cache
def frozen_backbone() -> Backbone:
    return Backbone.load(FORMAT_1 / "tiny-llama", dtype="float32", device="cpu")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    shutil.copytree(FORMAT_1 / "registry", tmp_path / "registry")
    opened = Registry(FileStore(tmp_path / "registry"), frozen_backbone())
    yield opened
    opened.close()


@pytest.fixture
def server(tmp_path: Path, registry: Registry) -> Iterator[TuningService]:
    """On a copy of the state folder; its jobs rest until it is started."""
    shutil.copytree(FORMAT_1 / "state", tmp_path / "state")
    opened = TuningService(tmp_path / "state", frozen_backbone(), registry, own_device)
    yield opened
    opened.close()


def jobs_by_task(server: TuningService) -> dict[str, Job]:
    jobs, _ = server.jobs.page(None, 100)
    return {job.spec["task"]: job for job in jobs}


def test_the_backbone_has_the_fingerprint_its_prompts_were_made_for(registry: Registry) -> None:
    assert frozen_backbone().fingerprint == FINGERPRINT
    assert all(version.backbone_fingerprint == FINGERPRINT for version in registry.versions("sentiment"))


def test_every_prompt_is_the_one_that_was_published(registry: Registry) -> None:
    assert registry.faults() == {}
    for name, digest in VERSION_TO_DIGEST.items():
        version = registry.resolve(name)
        prompt = registry.prompt(version)
        assert (version.digest, prompt.digest, prompt.num_virtual_tokens) == (
            digest,
            digest,
            version.num_virtual_tokens,
        )
    kinds = {name: registry.resolve(name).kind for name in ("brief", "headlines", "sentiment")}
    assert kinds == {"brief": PromptKind.TEXT, "headlines": PromptKind.KV, "sentiment": PromptKind.EMBEDDINGS}


def test_rows_are_read_bit_for_bit(registry: Registry) -> None:
    version = registry.resolve("sentiment@1")
    rows, initial = registry.prompt(version).rows, registry.initial(version)
    assert rows is not None
    assert initial is not None
    for values, seed in ((rows, 0), (initial, 100)):
        assert torch.equal(values, torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)))


def test_what_is_known_of_a_version_is_read(registry: Registry) -> None:
    version = registry.resolve("sentiment@2")
    assert version.template is not None
    assert version.template.text == "Review: {input}\nAnswer: {target}"
    assert (version.labels, version.label_temperature) == (("no", "yes"), 1.5)
    assert version.metrics == {"validation": {"accuracy": 0.6}}
    assert version.provenance == {"method": "prompt_tuning"}
    assert version.description == "Is it liked? Version 2: naïve “quotes”"
    manifest = Manifest.decode(registry.files(version)["task.json"])
    assert (manifest.data_sha256, manifest.tuning) == ("0" * 64, {"learning_rate": 0.3, "seed": 1})
    sampling = registry.resolve("headlines").sampling
    assert sampling == {"temperature": 0.5, "max_tokens": 12, "stop": ("\n",), "logit_bias": {5: -1.0}}


def test_aliases_gates_and_evaluations_are_read(registry: Registry) -> None:
    summary = registry.task("sentiment")
    assert summary.aliases == {"live": 2, "canary": {2: 0.75, 3: 0.25}}
    assert [version.number for version in registry.versions("sentiment")] == [1, 2, 3]
    gate = summary.gates["live"]
    assert (gate.data_sha256, gate.metric, gate.tolerance) == (EXAMPLES_SHA256, "accuracy", 0.05)
    assert registry.evaluations.gate_examples("sentiment", gate).count(b"good") == 4
    scores = {}
    for version in registry.versions("sentiment"):
        for evaluation in registry.evaluations.of_version(version):
            scores[version.number] = (evaluation.data_name, evaluation.metrics["accuracy"])
    assert scores == {1: ("eight.jsonl", 0.5), 2: ("eight.jsonl", 0.75)}


def test_the_number_of_a_deleted_version_is_not_given_out_again(registry: Registry) -> None:
    prompt = registry.prompt(registry.resolve("sentiment@3"))
    assert registry.publish("sentiment", Publication(prompt), alias=None).number == 5


def test_a_version_is_exported_as_it_was_written(registry: Registry) -> None:
    files = registry.files(registry.resolve("sentiment@3"))
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        assert files[name] == (FORMAT_1 / "registry" / "sentiment" / "3" / name).read_bytes()


def test_jobs_their_events_checkpoints_and_files_are_read(server: TuningService) -> None:
    jobs = jobs_by_task(server)
    assert {task: job.status for task, job in jobs.items()} == STATUSES
    likes = jobs["likes"]
    assert (likes.version, likes.step, likes.num_steps, likes.num_runs) == ("likes@6", 12, 12, 1)
    assert likes.spec["metadata"] == {"team": "search"}
    assert [checkpoint.version for checkpoint in server.checkpoints.of(likes.id)] == [f"likes@{n}" for n in range(1, 6)]
    events = all_events(server, likes)
    assert len(events) == 30
    assert (events[0].level, "Created fine-tuning job" in events[0].message) == ("info", True)
    assert jobs["short"].spec["teacher_text"]
    files, _ = server.files.page(None, 100)
    assert {file.purpose for file in files} == set(Purpose)
    for file in files:
        assert len(server.files.read(file)) == file.num_bytes
    figures = server.files.read(server.files.get(str(likes.result_file)))
    assert figures.startswith(b"step,")


def test_interrupted_jobs_continue_from_their_saved_states(server: TuningService, registry: Registry) -> None:
    jobs = jobs_by_task(server)
    recorded = {task: curve(server, job) for task, job in jobs.items()}
    for task in ("paused", "taught"):
        server.give(jobs[task].id, Order.RESUME)
    server.start()
    for task in ("crashed", "paused", "taught"):
        done = wait_for(server, jobs[task], JobStatus.SUCCEEDED)
        assert done.num_runs == 2
        assert registry.resolve(task).id == done.version
    for task, whole in (("paused", "likes"), ("crashed", "likes"), ("taught", "short")):
        figures = curve(server, jobs[task])
        assert figures[: len(recorded[task])] == recorded[task]
        for (*place, value), (*expected_place, expected) in zip(figures, recorded[whole], strict=True):
            assert place == expected_place
            assert value == pytest.approx(expected, abs=1e-4)
