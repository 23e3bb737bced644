"""`/v1/tasks/{task}/tokens`: what is shown, drawn and measured of virtual tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from xml.etree import ElementTree

import httpx
import pytest
import torch

from app.insight.report import made_of_tokens, without_token
from app.measure.dataset import Example
from app.measure.encoding import collate, encode_examples
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.prompted_forward import PromptPrefix, target_log_likelihoods
from app.registry.publication import Publication
from app.task_prompt import PromptKind, TaskPrompt
from tests.support.prompts import random_prompt, random_rows
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt, watch_deadlines

HEADLINE = Template("{input}\nHeadline: {target}")
EXAMPLES = [Example(f"a film {n} {'long ' * (n % 4)}", LABELS[n % 2]) for n in range(12)]
TITLES = [Example(f"text {n}", f"title {'x' * (n % 3)} {n}") for n in range(6)]


@pytest.fixture(scope="module")
def live(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        publish = server.registry.publish
        start = soft_prompt(backbone, seed=9).rows
        publish("soft", Publication(soft_prompt(backbone), template=Template(REVIEW), labels=LABELS, initial=start))
        publish("soft", Publication(soft_prompt(backbone, rows=5, seed=1), template=Template(REVIEW), labels=LABELS))
        keys_values = random_prompt(backbone, 4, kind=PromptKind.KV)
        publish("prefix", Publication(keys_values, template=Template(REVIEW), labels=LABELS, label_temperature=2.0))
        publish("title", Publication(soft_prompt(backbone, rows=3, seed=2), template=HEADLINE))
        publish(
            "one",
            Publication(TaskPrompt.from_embeddings(random_rows(backbone, 1), backbone.fingerprint), labels=LABELS),
        )
        yield server


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=120) as client:
        yield client


def measure(http: httpx.Client, task: str, examples: list[Example], **query: object) -> httpx.Response:
    body = {"examples": [{"input": example.input, "target": example.target} for example in examples]}
    return http.post(f"/v1/tasks/{task}/tokens", json=body, params=query)


def test_embeddings_have_neighbours_lengths_and_drift(http: httpx.Client, live: LiveServer) -> None:
    found = http.get("/v1/tasks/soft@1/tokens", params={"num_nearest": 3}).json()
    assert (found["model"], found["kind"]) == ("soft@1", "embeddings")
    assert "Khashabi et al. 2022" in found["note"]
    assert all(len(token["by_cosine"]) == len(token["by_distance"]) == 3 for token in found["virtual_tokens"])
    moved = (live.registry.prompt(live.registry.resolve("soft@1")).rows - soft_prompt_rows(live, 9)).norm(dim=1)
    assert [token["drift"] for token in found["virtual_tokens"]] == pytest.approx(moved.tolist(), rel=1e-4)
    assert {"layers", "difference", "effects"}.isdisjoint(found)
    assert http.get("/v1/tasks/soft@2/tokens").json()["virtual_tokens"][0]["drift"] is None


def soft_prompt_rows(live: LiveServer, seed: int) -> torch.Tensor:
    return soft_prompt(live.backbone, seed=seed).rows


def test_keys_and_values_are_shown_by_layer_and_without_neighbours(http: httpx.Client) -> None:
    found = http.get("/v1/tasks/prefix/tokens").json()
    assert found["kind"] == "kv"
    assert "do not lie among the vocabulary's embeddings" in found["note"]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert all(token["key_norm"] > 0 and "by_cosine" not in token for token in found["virtual_tokens"])
    assert http.get("/v1/tasks/prefix/tokens", params={"num_nearest": 3}).json()["error"]["param"] == "num_nearest"


def test_a_version_is_compared_with_another(http: httpx.Client) -> None:
    found = http.get("/v1/tasks/soft@1/tokens", params={"compare": "soft@2"}).json()["difference"]
    assert (found["model"], found["num_virtual_tokens"], found["is_same"]) == ("soft@2", 5, False)
    assert [row["distance"] is None for row in found["rows"]] == [False] * 5 + [True] * 2
    for other, status in (("prefix", 400), ("nope", 404), ("tiny-llama", 404)):
        refused = http.get("/v1/tasks/soft/tokens", params={"compare": other})
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, "compare")


@pytest.mark.parametrize(
    ("query", "accept", "is_drawn"),
    [
        ({"format": "svg"}, "*/*", True),
        ({}, "image/svg+xml", True),
        ({}, "text/html,image/svg+xml;q=0.9", True),
        ({"format": "json"}, "image/svg+xml", False),
        ({}, "application/json,image/svg+xml;q=0.1", False),
        ({}, "*/*", False),
    ],
)
def test_the_report_is_drawn_where_that_is_asked_for(
    http: httpx.Client, query: dict[str, str], accept: str, is_drawn: bool
) -> None:
    answer = http.get("/v1/tasks/soft/tokens", params=query, headers={"accept": accept})
    assert answer.headers["content-type"].startswith("image/svg+xml" if is_drawn else "application/json")
    if is_drawn:
        ElementTree.fromstring(answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("task", ["soft@1", "prefix"])
def test_the_effect_of_a_virtual_token_is_what_the_answers_are_without_it(
    http: httpx.Client, live: LiveServer, backbone: Backbone, task: str
) -> None:
    version = live.registry.resolve(task)
    prompt = live.registry.prompt(version)

    def plain(variant: TaskPrompt | None) -> dict[str, float]:
        temperature = version.label_temperature or 1.0
        return evaluate(
            backbone, ServedPrompt(variant, version.template, LABELS, label_temperature=temperature), EXAMPLES
        ).metrics

    found = measure(http, task, EXAMPLES).json()["effects"]
    present = plain(prompt)
    assert found["num_examples"] == 12
    assert (found["present"]["loss"], found["present"]["accuracy"]) == pytest.approx(
        (present["nll"], present["accuracy"]), abs=1e-4
    )
    assert len(found["without"]) == prompt.num_virtual_tokens
    for index, effect in enumerate(found["without"]):
        without = plain(without_token(prompt, index))
        assert effect["loss"] == pytest.approx(without["nll"] - present["nll"], abs=1e-4)
        assert effect["accuracy"] == pytest.approx(without["accuracy"] - present["accuracy"], abs=1e-6)
    if task == "prefix":
        assert found["made_of_tokens"] == []
        return
    shown = http.get(f"/v1/tasks/{task}/tokens").json()["virtual_tokens"]
    for made in found["made_of_tokens"]:
        nearest = [token[f"by_{made['nearest_by']}"][0] for token in shown]
        assert made["tokens"] == [near["token"] for near in nearest]
        metrics = plain(made_of_tokens(backbone, [near["token_id"] for near in nearest]))
        assert made["effect"]["loss"] == pytest.approx(metrics["nll"] - present["nll"], abs=1e-4)


def test_a_task_that_writes_is_measured_by_the_loss_of_its_targets(
    http: httpx.Client, live: LiveServer, backbone: Backbone
) -> None:
    prompt = live.registry.prompt(live.registry.resolve("title"))

    def plain(variant: TaskPrompt | None) -> float:
        rows = encode_examples(backbone, HEADLINE, TITLES, max_input_tokens=400, max_target_tokens=60)
        batch = collate(rows, backbone.device)
        with torch.no_grad():
            found = target_log_likelihoods(backbone, PromptPrefix.of_prompt(backbone, variant), batch).sum(dim=1)
        return float(-(found / (batch.row_lens - batch.text_lens)).mean())

    found = measure(http, "title", TITLES).json()["effects"]
    assert found["present"] == {"loss": pytest.approx(plain(prompt), abs=1e-4), "accuracy": None}
    for index, effect in enumerate(found["without"]):
        assert effect["loss"] == pytest.approx(plain(without_token(prompt, index)) - plain(prompt), abs=1e-4)


def test_every_question_of_a_measurement_gets_the_seconds_that_are_left(
    http: httpx.Client, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s = watch_deadlines(monkeypatch, live, "score")
    assert measure(http, "title", TITLES * 20).status_code == 200
    assert all(later < earlier for earlier, later in pairwise(left_s))


def test_the_last_virtual_token_can_be_left_out(http: httpx.Client) -> None:
    assert len(measure(http, "one", EXAMPLES).json()["effects"]["without"]) == 1


def test_a_measured_report_can_be_drawn(http: httpx.Client) -> None:
    drawn = measure(http, "prefix", EXAMPLES, format="svg", compare="prefix@1")
    assert drawn.headers["content-type"] == "image/svg+xml"
    ElementTree.fromstring(drawn.text)


def test_what_cannot_be_measured_is_refused_by_name(http: httpx.Client) -> None:
    def refused(task: str, examples: list[Example]) -> tuple[int, str]:
        answer = measure(http, task, examples)
        return answer.status_code, answer.json()["error"]["param"]

    assert refused("soft@1", [Example("x", "neutral")]) == (400, "examples.0.target")
    assert refused("soft@1", []) == (400, "examples")
    assert refused("soft@1", EXAMPLES * 180) == (400, "examples")
    assert "at most 2000 examples" in measure(http, "soft@1", EXAMPLES * 180).json()["error"]["message"]
    assert refused("nope", EXAMPLES)[0] == 404
    created = http.post("/v1/tasks/written/versions", json={"text": "Say yes.", "labels": list(LABELS)})
    assert created.status_code == 201
    assert refused("written", EXAMPLES) == (400, "task")
