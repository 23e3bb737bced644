"""Gates over HTTP: the engine measures what a move asks for, and a lower score is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from safetensors.torch import save as save_safetensors

from app.answers.call import Readiness
from app.measure.dataset import Example, hash_examples
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from app.task_prompt import TaskPrompt
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt

INPUTS = [f"film {n} {'x' * (n % 5)}" for n in range(60)]


def answers(backbone: Backbone, prompt: TaskPrompt) -> list[str]:
    asked = [Example(text, LABELS[0]) for text in INPUTS]
    return list(evaluate(backbone, ServedPrompt(prompt, Template(REVIEW), LABELS), asked).predictions)


@pytest.fixture(scope="module")
def seeds(backbone: Backbone) -> tuple[int, int]:
    """Two prompts that answer differently."""
    for seed in range(1, 60):
        if answers(backbone, soft_prompt(backbone)) != answers(backbone, soft_prompt(backbone, seed=seed)):
            return 0, seed
    raise AssertionError("all prompts answer alike")


@pytest.fixture
def live(backbone: Backbone, seeds: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """good@1 is right on every example of its gate-to-be; good@2 is not."""
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        for seed, alias in zip(seeds, ("live", None), strict=True):
            prompt = soft_prompt(backbone, seed=seed)
            server.registry.publish("good", Publication(prompt, template=Template(REVIEW), labels=LABELS), alias=alias)
        yield server


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


@pytest.fixture
def gate(backbone: Backbone, seeds: tuple[int, int]) -> dict[str, object]:
    right = answers(backbone, soft_prompt(backbone, seed=seeds[0]))
    return {"examples": [{"input": text, "target": label} for text, label in zip(INPUTS, right, strict=True)]}


def move(http: httpx.Client, **body: object) -> httpx.Response:
    return http.put("/v1/tasks/good/aliases/live", json=body)


def test_a_version_that_scores_lower_is_refused_unless_forced(http: httpx.Client, gate: dict[str, object]) -> None:
    attached = move(http, version=1, gate=gate).json()
    sha256 = hash_examples([Example(each["input"], each["target"]) for each in gate["examples"]])
    assert attached["gate"] == {"data_sha256": sha256, "metric": "accuracy", "tolerance": 0.0}
    assert http.get("/v1/tasks/good").json()["gates"] == {"live": attached["gate"]}

    refused = move(http, version=2)
    assert refused.status_code == 412
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("gate_failed", "version")
    assert "version 1, which it would replace, 1.0000" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert http.get("/v1/tasks/good").json()["aliases"] == {"live": 1}
    [kept] = http.get("/v1/tasks/good/versions/2/evaluations").json()["data"]
    assert kept["data_sha256"] == sha256
    assert kept["metrics"]["accuracy"] < 1

    forced = move(http, version=2, force=True)
    assert (forced.status_code, forced.json()["gate"]) == (200, attached["gate"])
    assert move(http, version=1).status_code == 200


def test_a_gate_that_comes_with_a_move_counts_for_it(http: httpx.Client, gate: dict[str, object]) -> None:
    assert move(http, version=2, gate=gate).status_code == 412
    assert http.get("/v1/tasks/good").json()["gates"] == {}
    assert move(http, version=2, gate={**gate, "tolerance": 1.0}).status_code == 200


def test_an_upload_onto_a_gated_alias_is_measured_before_it_is_published(
    http: httpx.Client, gate: dict[str, object], backbone: Backbone, seeds: tuple[int, int]
) -> None:
    def upload(seed: int, **more: object) -> httpx.Response:
        file = save_safetensors({"prompt_embeddings": soft_prompt(backbone, seed=seed).rows})
        metadata = json.dumps({"template": REVIEW, "labels": list(LABELS), **more})
        return http.post("/v1/tasks/good/versions", files={"file": ("f", file)}, data={"metadata": metadata})

    move(http, version=1, gate=gate)
    worse = upload(seeds[1])
    assert (worse.status_code, worse.json()["error"]["code"]) == (412, "gate_failed")
    assert len(http.get("/v1/tasks/good/versions").json()["data"]) == 2
    assert upload(seeds[1], alias=None).json()["id"] == "good@3"
    assert upload(seeds[0]).json()["id"] == "good@4"
    assert upload(seeds[1], force=True).json()["id"] == "good@5"
    assert http.get("/v1/tasks/good").json()["aliases"] == {"live": 5}
    assert upload(seeds[0]).status_code == 201


def test_a_gate_is_taken_away_by_its_own_route(http: httpx.Client, gate: dict[str, object]) -> None:
    move(http, version=1, gate=gate)
    gone = http.delete("/v1/tasks/good/aliases/live/gate")
    assert gone.json() == {"id": "good@live", "object": "task.gate", "deleted": True}
    assert http.delete("/v1/tasks/good/aliases/live/gate").status_code == 404
    assert move(http, version=2).json()["gate"] is None


def test_a_server_that_stops_measures_no_more_and_still_moves_what_is_measured(
    live: LiveServer, http: httpx.Client, gate: dict[str, object]
) -> None:
    move(http, version=1, gate=gate)
    live.part(Readiness).is_draining = True
    assert move(http, version=2).status_code == 503
    assert move(http, version=2, force=True).status_code == 200
    assert http.get("/v1/tasks/good/versions/2/evaluations").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"metric": "rouge_l"}, "metric"),
        ({"metric": "nll"}, "metric"),
        ({"tolerance": -1}, "tolerance"),
        ({"examples": []}, "examples"),
        ({"examples": [{"input": "x", "target": "neutral"}]}, "target"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_gate_that_cannot_be_is_refused_by_name(
    http: httpx.Client, gate: dict[str, object], change: dict[str, object], param: str
) -> None:
    answer = move(http, version=1, gate={**gate, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[-1] == param
    assert http.get("/v1/tasks/good").json()["gates"] == {}


def test_figures_are_kept_where_that_is_asked_for(http: httpx.Client, gate: dict[str, object]) -> None:
    path, body = "/v1/tasks/good/evaluate", {"examples": gate["examples"]}
    assert http.post(path, json=body).status_code == 200
    assert http.get("/v1/tasks/good/versions/1/evaluations").json()["data"] == []
    assert http.post(path, json={**body, "data_name": "test"}).json()["error"]["param"] == "data_name"
    said = http.post(path, json={**body, "record": True, "data_name": "test"}).json()
    [kept] = http.get("/v1/tasks/good/versions/1/evaluations").json()["data"]
    assert (kept["data_name"], kept["data_sha256"], kept["metrics"]) == ("test", said["data_sha256"], said["metrics"])
    backbone = {"examples": gate["examples"], "record": True}
    assert http.post("/v1/tasks/tiny-llama/evaluate", json=backbone).json()["error"]["param"] == "record"
