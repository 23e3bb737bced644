"""The registry over HTTP, and tasks used for what they were tuned for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save as save_safetensors

from app.model.backbone import Backbone
from app.registry.formats.binding import bind_rows
from app.registry.formats.foreign_file import max_upload_bytes
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind
from tests.support.models import build_backbone, character_tokenizer
from tests.support.prompts import random_rows, write_checkpoint
from tests.support.server import REVIEW, LiveServer, make_settings, run_server, soft_prompt, watch_deadlines


@pytest.fixture(scope="module")
def own(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose tasks these tests change."""
    with (
        run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        yield client


def _upload(
    client: httpx.Client, task: str, backbone: Backbone, *, seed: int = 0, **metadata: object
) -> httpx.Response:
    rows = soft_prompt(backbone, seed=seed).rows
    return client.post(
        f"/v1/tasks/{task}/versions",
        files={"file": ("adapter_model.safetensors", save_safetensors({"prompt_embeddings": rows}))},
        data={"metadata": json.dumps(metadata)},
    )


def test_an_upload_is_served_when_it_is_answered(own: httpx.Client, backbone: Backbone) -> None:
    created = _upload(own, "fresh", backbone, template=REVIEW, labels=["no", "yes"], description="a test")
    assert created.status_code == 201
    version = created.json()
    assert (version["id"], version["kind"], version["num_virtual_tokens"]) == ("fresh@1", "embeddings", 7)
    assert version["digest"] == soft_prompt(backbone, seed=0).digest
    assert created.headers["location"] == "/v1/tasks/fresh/versions/1"
    answer = own.post("/v1/tasks/fresh/run", json={"input": "hello"}).json()
    assert answer["model"] == "fresh@1"
    assert set(answer["probabilities"]) == {"no", "yes"}
    assert own.get("/v1/tasks/fresh/versions/1").json() == version


def test_a_linked_task_is_neither_served_nor_deleted_and_what_it_links_to_stays(
    backbone: Backbone, tmp_path: Path
) -> None:
    outside = tmp_path / "checkpoint"
    write_checkpoint(outside, soft_prompt(backbone), backbone)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "linked").symlink_to(outside)
    with (
        run_server(make_settings(tmp_path / "prompts"), backbone) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        answers = [
            client.post("/v1/tasks/linked/run", json={"input": "x"}),
            client.delete("/v1/tasks/linked"),
            _upload(client, "linked", backbone),
        ]
    assert [answer.status_code for answer in answers] == [404, 503, 503]
    assert all("the folder is a link" in answer.json()["error"]["message"] for answer in answers)
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


def test_of_a_multitask_file_the_metadata_says_which_task(own: httpx.Client, backbone: Backbone) -> None:
    shared = soft_prompt(backbone).rows
    tensors = {"prompt_embeddings": shared, "prefix_task_cols": torch.ones(2, 7, 1)}
    tensors["prefix_task_rows"] = torch.stack([torch.ones(1, 32), torch.full((1, 32), 2.0)])

    def publish(**metadata: object) -> httpx.Response:
        files = {"file": ("adapter_model.safetensors", save_safetensors(tensors))}
        return own.post("/v1/tasks/chosen/versions", files=files, data={"metadata": json.dumps(metadata)})

    published = publish(source_task=1).json()
    assert published["digest"] == bind_rows(2 * shared, PromptKind.EMBEDDINGS, backbone).digest
    assert published["provenance"] == {"source_task": 1}
    assert publish(source_task=1, provenance={"source": "us"}).json()["provenance"] == {
        "source_task": 1,
        "source": "us",
    }
    for metadata in ({}, {"source_task": 2}, {"source_task": -1}, {"source_task": "1"}):
        refused = publish(**metadata)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source_task")
    assert _upload(own, "chosen", backbone, source_task=0).json()["error"]["param"] == "source_task"
    text = own.post("/v1/tasks/chosen/versions", json={"text": "Say hi.", "source_task": 0})
    assert (text.status_code, text.json()["error"]["param"]) == (400, "source_task")


def test_keys_and_values_are_known_by_their_width(own: httpx.Client, backbone: Backbone) -> None:
    rows = {"prompt_embeddings": random_rows(backbone, kind=PromptKind.KV)}
    files = {"file": ("adapter_model.safetensors", save_safetensors(rows))}
    published = own.post("/v1/tasks/wide/versions", files=files)
    assert (published.status_code, published.json()["kind"]) == (201, "kv")
    said = own.post("/v1/tasks/wide/versions", files=files, data={"metadata": '{"kind": "embeddings"}'})
    assert (said.status_code, said.json()["error"]["param"]) == (400, "prompt_embeddings")


def test_a_prompt_may_be_as_large_as_the_backbone_allows_and_no_larger(tmp_path: Path) -> None:
    long = build_backbone(max_position_embeddings=2048)
    rows = random_rows(long, MAX_VIRTUAL_TOKENS, kind=PromptKind.KV)
    largest = save_safetensors({"prompt_embeddings": rows})
    with run_server(make_settings(tmp_path), long) as live, httpx.Client(base_url=live.url, timeout=60) as client:

        def upload(content: bytes) -> httpx.Response:
            return client.post("/v1/tasks/long/versions", files={"file": ("x.safetensors", content)})

        published = upload(largest)
        limit = client.get("/v1/server").json()["limits"]["upload_bytes"]
        too_large, far_too_large = upload(bytes(limit + 1)), upload(bytes(limit + 2**20 + 1))
        operation = client.get("/openapi.json").json()["paths"]["/v1/tasks/{task}/versions"]["post"]
        used = client.post("/v1/tasks/long/run", json={"input": "x", "max_tokens": 1})
    assert (published.status_code, published.json()["num_virtual_tokens"]) == (201, MAX_VIRTUAL_TOKENS)
    assert len(largest) <= limit <= len(largest) + 2**15
    assert (too_large.status_code, far_too_large.status_code) == (400, 413)
    assert f"at most {limit} bytes" in too_large.json()["error"]["message"]
    assert operation["x-max-body-bytes"] == limit + 2**20
    assert used.json()["usage"]["prompt_tokens"] > MAX_VIRTUAL_TOKENS


def test_labels_that_cannot_be_told_apart_are_refused_and_live_stays(tmp_path: Path, backbone: Backbone) -> None:
    reading = replace(backbone, tokenizer=character_tokenizer())
    metadata = {"template": REVIEW, "labels": ["caf\xe9", "caf\xfc"]}
    with run_server(make_settings(tmp_path), reading) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        assert _upload(client, "mood", backbone, **{**metadata, "labels": ["no", "yes"]}).status_code == 201
        refused = [
            _upload(client, "mood", backbone, **metadata),
            client.post("/v1/tasks/mood/versions", json={"text": "Say it.", **metadata}),
        ]
        assert client.post("/v1/tasks/mood/run", json={"input": "x"}).json()["model"] == "mood@1"
    for answer in refused:
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "labels"
        assert answer.json()["error"]["message"] == r'"caf\xe9" and "caf\xfc" are the same to the tokenizer'


def test_a_prompt_that_leaves_no_room_is_refused_and_one_found_says_why_when_it_is_used(
    tmp_path: Path, backbone: Backbone
) -> None:
    registry = Registry(FileStore(tmp_path), backbone)
    registry.publish("found", Publication(soft_prompt(backbone, rows=200)))
    rows = {"prompt_embeddings": soft_prompt(backbone, rows=200, seed=1).rows}
    settings = make_settings(tmp_path, max_model_len=128)
    with run_server(settings, backbone) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        refused = client.post("/v1/tasks/mood/versions", files={"file": ("x.safetensors", save_safetensors(rows))})
        used = client.post("/v1/tasks/found/run", json={"input": "x"})
        assert client.get("/v1/tasks/mood").status_code == 404
    for answer, param in ((refused, "num_virtual_tokens"), (used, "task")):
        assert answer.status_code == 400
        assert "max_model_len is 128" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == param


def test_a_text_is_published_as_json(own: httpx.Client) -> None:
    created = own.post("/v1/tasks/greet/versions", json={"text": "Say hi.\n", "sampling": {"max_tokens": 3}})
    assert created.status_code == 201
    assert created.json()["kind"] == "text"
    assert own.post("/v1/tasks/greet/run", json={"input": "you"}).json()["usage"]["completion_tokens"] <= 3


def test_a_rollback_is_an_alias_moved(own: httpx.Client, backbone: Backbone) -> None:
    for seed in (1, 2):
        _upload(own, "moving", backbone, seed=seed)

    def live() -> str:
        return own.post("/v1/tasks/moving/run", json={"input": "x", "max_tokens": 1}).json()["model"]

    assert live() == "moving@2"
    moved = own.put("/v1/tasks/moving/aliases/live", json={"version": 1})
    assert moved.json() == {"object": "task.alias", "task": "moving", "alias": "live", "target": 1, "gate": None}
    assert live() == "moving@1"
    shared = own.put("/v1/tasks/moving/aliases/live", json={"weights": {"1": 0.5, "2": 0.5}})
    assert shared.json()["target"] == {"1": 0.5, "2": 0.5}
    assert {live() for _ in range(40)} == {"moving@1", "moving@2"}
    assert own.delete("/v1/tasks/moving/versions/1").status_code == 400
    own.put("/v1/tasks/moving/aliases/live", json={"version": 2})
    assert own.delete("/v1/tasks/moving/versions/1").json() == {
        "id": "moving@1",
        "object": "task.version",
        "deleted": True,
    }
    assert own.post("/v1/tasks/moving@1/run", json={"input": "x"}).status_code == 404


def test_a_writer_who_read_an_older_state_is_answered_with_412(own: httpx.Client, backbone: Backbone) -> None:
    _upload(own, "locked", backbone, seed=1)
    etag = own.get("/v1/tasks/locked").headers["etag"]
    _upload(own, "locked", backbone, seed=2)
    for method, path, body in (
        ("PUT", "/v1/tasks/locked/aliases/live", {"version": 1}),
        ("DELETE", "/v1/tasks/locked/versions/1", None),
        ("DELETE", "/v1/tasks/locked", None),
        ("POST", "/v1/tasks/locked/versions", {"text": "x"}),
    ):
        refused = own.request(method, path, json=body, headers={"if-match": etag})
        assert (refused.status_code, refused.json()["error"]["code"]) == (412, "conflict")
    now = own.get("/v1/tasks/locked").headers["etag"]
    moved = own.put("/v1/tasks/locked/aliases/live", json={"version": 1}, headers={"if-match": now})
    assert moved.status_code == 200
    assert moved.headers["etag"] == own.get("/v1/tasks/locked").headers["etag"] != now


def test_a_deleted_task_is_gone(own: httpx.Client, backbone: Backbone) -> None:
    _upload(own, "leaving", backbone)
    assert own.put("/v1/tasks/leaving/aliases/canary", json={"version": 1}).status_code == 200
    assert own.delete("/v1/tasks/leaving/aliases/canary").json()["id"] == "leaving@canary"
    assert own.delete("/v1/tasks/leaving").json() == {"id": "leaving", "object": "task", "deleted": True}
    assert own.get("/v1/tasks/leaving").status_code == 404
    assert own.delete("/v1/tasks/leaving").status_code == 404


def test_a_model_is_deleted_as_the_task_or_version_it_names(own: httpx.Client, backbone: Backbone) -> None:
    for seed in (1, 2):
        _upload(own, "model", backbone, seed=seed)
    etag = own.get("/v1/tasks/model").headers["etag"]
    assert own.delete("/v1/models/model@1").json() == {"id": "model@1", "object": "model", "deleted": True}
    assert own.get("/v1/models/model@1").status_code == 404
    named = own.delete("/v1/models/model@2")
    assert (named.status_code, named.json()["error"]["param"]) == (400, "model")
    assert named.json()["error"]["message"] == own.delete("/v1/tasks/model/versions/2").json()["error"]["message"]
    stale = own.delete("/v1/models/model", headers={"if-match": etag})
    assert (stale.status_code, stale.json()) == (412, own.delete("/v1/tasks/model", headers={"if-match": etag}).json())
    now = own.get("/v1/tasks/model").headers["etag"]
    gone = own.delete("/v1/models/model", headers={"if-match": now})
    assert gone.json() == {"id": "model", "object": "model", "deleted": True}
    assert own.get("/v1/tasks/model").status_code == 404
    assert own.delete("/v1/models/model").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        ("tiny-llama", 400, "the backbone"),
        ("kept@1+2", 400, "an ensemble"),
        ("kept+kept", 400, "an ensemble"),
        ("kept@live", 400, "kept@3"),
        ("kept@sha256:abcdef01", 400, "kept@3"),
        ("kept@9", 404, "no such version"),
        ("keptt", 404, "no task"),
        ("No Such", 404, "a-z"),
    ],
)
def test_a_model_that_names_no_task_or_version_is_not_deleted(
    own: httpx.Client, backbone: Backbone, model: str, status: int, said: str
) -> None:
    if own.get("/v1/tasks/kept").status_code == 404:
        _upload(own, "kept", backbone)
    before = own.get("/v1/tasks").json()
    refused = own.delete(f"/v1/models/{model}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, "model")
    assert said in refused.json()["error"]["message"]
    assert own.get("/v1/tasks").json() == before


def test_lists_are_read_page_by_page(own: httpx.Client, backbone: Backbone) -> None:
    for name in ("page-a", "page-b", "page-c"):
        _upload(own, name, backbone)
    names, after = [], "page"
    while True:
        page = own.get("/v1/tasks", params={"limit": 1, "after": after}).json()
        names += [task["id"] for task in page["data"]]
        after = names[-1]
        if not page["has_more"] or not after.startswith("page"):
            break
    assert names[:3] == ["page-a", "page-b", "page-c"]
    for seed in (1, 2):
        _upload(own, "page-a", backbone, seed=seed)
    newest = own.get("/v1/tasks/page-a/versions", params={"limit": 2}).json()
    assert [version["number"] for version in newest["data"]] == [3, 2]
    assert newest["has_more"]
    rest = own.get("/v1/tasks/page-a/versions", params={"before": 2}).json()
    assert ([version["number"] for version in rest["data"]], rest["has_more"]) == ([1], False)


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({"template": "no places"}, "template"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"labels": "a,b"}, "labels"),
        ({"kind": "text"}, "kind"),
        ({"alias": "../x"}, "alias"),
        ({"nonsense": 1}, "nonsense"),
        ({"sampling": {"nonsense": 1}}, "sampling.nonsense"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature"),
        ({"labels": ["x"] * 1025}, "labels"),
    ],
)
def test_metadata_that_cannot_be_is_refused_by_name(
    own: httpx.Client, backbone: Backbone, metadata: dict[str, object], param: str
) -> None:
    answer = _upload(own, "refused", backbone, **metadata)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert own.get("/v1/tasks/refused").status_code == 404


def test_what_is_no_prompt_is_refused(own: httpx.Client) -> None:
    path = "/v1/tasks/refused/versions"
    for content in (b"", b"x" * 100, b"\x80\x04\x95pickle", b"\xff" * 8):
        assert own.post(path, files={"file": ("f", content)}).status_code == 400
    assert own.post(path, data={"metadata": "{}"}).status_code == 415
    assert own.post(path, files={"other": ("f", b"x")}).json()["error"]["param"] == "other"
    assert own.post(path, files={"metadata": ("f", b"{}"), "file": ("f", b"x")}).status_code == 400
    assert own.post(path, files={"file": ("f", b"x" * (17 * 2**20))}).status_code == 413
    assert own.post(path, content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400


def test_names_that_cannot_be_tasks_are_refused(own: httpx.Client) -> None:
    for name in ("UPPER", "-dash", "a" * 64, "a%2Fb", "a@1", "%2e%2e"):
        assert own.post(f"/v1/tasks/{name}/versions", json={"text": "x"}).status_code in (400, 404)


def test_inputs_are_answered_in_order_and_as_alone(http: httpx.Client) -> None:
    texts = [f"film number {number}" for number in range(12)]
    together = http.post("/v1/tasks/sentiment/run", json={"inputs": texts}).json()["results"]
    for text, result in zip(texts, together, strict=True):
        alone = http.post("/v1/tasks/sentiment/run", json={"input": text}).json()
        assert alone["label"] == result["label"]
        assert alone["probabilities"] == pytest.approx(result["probabilities"], abs=1e-4)
        assert next(iter(result["probabilities"])) == result["label"]
        assert sum(result["probabilities"].values()) == pytest.approx(1)
        assert 0 <= result["label_mass"] <= 1


def test_every_input_of_a_call_gets_the_seconds_that_are_left_of_its_deadline(
    http: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s = watch_deadlines(monkeypatch, server, "generate")
    items = [{"task": "headline", "input": f"text {number}"} for number in range(20)]
    assert http.post("/v1/run", json=items, headers={"x-request-timeout": "100"}).status_code == 200
    assert len(left_s) == 20
    assert left_s[-1] < left_s[0] < 100


def test_a_mixed_call_gives_each_task_its_own_answer(http: httpx.Client) -> None:
    items = [{"task": task, "input": "hello"} for task in ("sentiment@1", "headline", "sentiment", "headline@1")]
    results = http.post("/v1/run", json=items).json()["results"]
    assert [result["model"] for result in results] == ["sentiment@1", "headline@1", "sentiment@2", "headline@1"]
    assert "label" in results[0]
    assert "text" not in results[0]
    assert results[1] == results[3]
    assert results[1]["text"] == http.post("/v1/tasks/headline/run", json={"input": "hello"}).json()["text"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/run", [{"task": "headline", "input": "x"}, {"task": "nope", "input": "x"}], "items.1.task"),
        ("/v1/run", [{"task": "headline", "input": "x"}, {"task": "headline"}], "items.1.input"),
        ("/v1/run", [{"task": "headline", "input": "x"}, {"task": "headline", "input": "x" * 600}], "items.1.input"),
        ("/v1/run", [{"task": "headline", "input": 1}], "items.0.input"),
        ("/v1/run", [], None),
        ("/v1/tasks/headline/run", {"inputs": ["x", "y" * 600]}, "inputs.1"),
        ("/v1/tasks/headline/run", {"inputs": []}, "inputs"),
        ("/v1/tasks/headline/run", {"inputs": ["x"] * 1001}, "inputs"),
        ("/v1/tasks/headline/run", {"input": "x", "inputs": ["x"]}, None),
        ("/v1/tasks/headline/run", {}, None),
        ("/v1/tasks/headline/run", {"inputs": ["x"], "stream": True}, "stream"),
        ("/v1/tasks/sentiment/run", {"input": "x", "stream": True}, "stream"),
        ("/v1/tasks/sentiment/run", {"input": "x", "temperature": 1}, "temperature"),
        ("/v1/tasks/nope/run", {"input": "x"}, "task"),
        ("/v1/decisions", {"model": "headline", "input": "x"}, "questions"),
        ("/v1/decisions", {"model": "sentiment", "input": "x", "questions": [
            {"type": "predicate", "instructions": "x"}]}, "questions"),
        ("/v1/decisions", {"model": "headline", "input": "x", "questions": [{"type": "ranking"}]}, "questions.0"),
        ("/v1/decisions", {"model": "headline", "input": "x", "questions": [
            {"type": "choice", "instructions": "x", "choices": [{"value": "true"}, {"value": True}]}]}, "questions.0"),
    ],
)  # fmt: skip
def test_an_error_in_one_item_names_it(http: httpx.Client, path: str, body: object, param: str | None) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_streamed_run_adds_up_to_the_text(http: httpx.Client) -> None:
    whole = http.post("/v1/tasks/headline/run", json={"input": "hello", "max_tokens": 12}).json()
    streamed = http.post("/v1/tasks/headline/run", json={"input": "hello", "max_tokens": 12, "stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert "".join(chunk["text"] for chunk in chunks).strip() == whole["text"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_the_server_says_what_it_is(http: httpx.Client, server: LiveServer) -> None:
    from app.http.operations.server import LIMITS

    said = http.get("/v1/server").json()
    expected = {**LIMITS, "upload_bytes": max_upload_bytes(server.backbone)}
    assert json.dumps(said["limits"]) == json.dumps(expected)  # a count is an integer: 64, not 64.0
    assert said["backbone"]["fingerprint"] == server.backbone.fingerprint
    assert (said["backbone"]["dtype"], said["backbone"]["quantize"]) == ("float32", "none")
    assert said["engine"]["max_model_len"] == 512


def test_metrics_count_what_was_asked(http: httpx.Client) -> None:
    def count() -> float:
        lines = http.get("/metrics").text.splitlines()
        name = 'softswap_task_requests_total{finished_reason="length",task="raw"}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    before = count()
    http.post("/v1/completions", json={"model": "raw", "prompt": "x", "max_tokens": 2, "n": 3, "ignore_eos": True})
    assert count() == before + 3
