"""`POST /v1/tasks/{task}/evaluate`: the engine's figures are those of the plain path."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from app.answers.call import Call
from app.answers.measuring.evaluation import Evaluator
from app.answers.targets import TaskFinder
from app.errors import DeadlineExceeded
from app.measure.dataset import Example, hash_examples
from app.measure.plain_model import evaluate
from app.measure.served_prompt import ServedPrompt
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt

INPUTS = [f"a film {'good' if n % 3 else 'dull'} {'indeed ' * (n % 7)}{n}" for n in range(40)]


@pytest.fixture(scope="module")
def own(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as live:
        publish = live.registry.publish
        publish(
            "two", Publication(soft_prompt(backbone), template=Template(REVIEW), labels=LABELS, label_temperature=2.5)
        )
        many = [f"{first} {second}" for first in "abcdefg" for second in "xyz"]
        publish("many", Publication(soft_prompt(backbone, seed=1), labels=many))
        publish(
            "text",
            Publication(
                soft_prompt(backbone, seed=2),
                template=Template("{input}\nA: {target}"),
                sampling={"max_tokens": 9, "stop": ["e"], "temperature": 1.0},
            ),
        )
        yield live


def _examples(live: LiveServer, task: str) -> list[Example]:
    labels = live.registry.resolve(task).labels or ("a title", "another")
    long = Example("very long " * 100, labels[0])
    return [Example(text, labels[n % len(labels)]) for n, text in enumerate(INPUTS)] + [long]


def _ask(live: LiveServer, task: str, examples: list[Example], **more: object) -> httpx.Response:
    items = [{"input": example.input, "target": example.target} for example in examples]
    return httpx.post(f"{live.url}/v1/tasks/{task}/evaluate", json={"examples": items, **more}, timeout=120)


@pytest.mark.parametrize("task", ["two", "many", "text"])
def test_the_engine_finds_what_the_plain_path_finds(own: LiveServer, backbone: Backbone, task: str) -> None:
    examples = _examples(own, task)
    version = own.registry.resolve(task)
    plain = evaluate(backbone, ServedPrompt.of(own.registry.prompt(version), version), examples)
    said = _ask(own, task, examples, with_predictions=True).json()
    assert said["model"] == version.id
    assert said["data_sha256"] == hash_examples(examples)
    assert said["main_metric"] == plain.main_metric
    assert said["predictions"] == list(plain.predictions)
    assert said["metrics"] == pytest.approx(plain.metrics, abs=1e-4)
    if plain.labels:
        assert [each["label"] for each in said["labels"]] == list(plain.labels)
        assert said["confusion"] == [list(row) for row in plain.confusion]
        assert said["calibration"]["temperature"] == plain.label_temperature
    else:
        assert "labels" not in said


def test_the_probabilities_of_a_version_have_its_temperature(own: LiveServer, backbone: Backbone) -> None:
    own.registry.publish("cold", Publication(soft_prompt(backbone), template=Template(REVIEW), labels=LABELS))
    for text in INPUTS[:4]:
        [hot, cold] = httpx.post(
            f"{own.url}/v1/run", json=[{"task": "two", "input": text}, {"task": "cold", "input": text}]
        ).json()["results"]
        assert (hot["label"], hot["label_mass"]) == (cold["label"], pytest.approx(cold["label_mass"]))
        weights = {label: chance ** (1 / 2.5) for label, chance in cold["probabilities"].items()}
        expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
        assert hot["probabilities"] == pytest.approx(expected, abs=1e-5)
        decided = httpx.post(f"{own.url}/v1/decisions", json={"model": "two", "input": text}).json()["answers"][0]
        assert decided["confidence"] == pytest.approx(hot["probabilities"][hot["label"]], abs=1e-5)


def test_what_cannot_be_evaluated_names_the_example(own: LiveServer) -> None:
    def refused(examples: list[Example], task: str = "two") -> tuple[int, str]:
        answer = _ask(own, task, examples)
        return answer.status_code, answer.json()["error"]["param"]

    good = Example("x", "positive")
    assert refused([good, Example("x", "neutral")]) == (400, "examples.1.target")
    assert refused([good, Example("x", " ")]) == (400, "examples.1.target")
    assert refused([]) == (400, "examples")
    assert refused([good] * 5001) == (400, "examples")
    assert refused([good], "nope") == (404, "task")


def _assert_equal_but_for_rounding(one: object, other: object) -> None:
    """Examples meet in other batches each time, so the last bits of a probability may differ; nothing else may."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            _assert_equal_but_for_rounding(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            _assert_equal_but_for_rounding(each, its)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    else:
        assert one == other


def test_an_uploaded_file_is_evaluated_as_examples_in_the_request_are(own: LiveServer) -> None:
    examples = _examples(own, "two")
    lines = "\n".join(json.dumps({"input": each.input, "target": each.target}) for each in examples)
    upload = httpx.post(
        f"{own.url}/v1/files", files={"file": ("test.jsonl", lines.encode())}, data={"purpose": "fine-tune"}
    ).json()
    path = f"{own.url}/v1/tasks/two/evaluate"
    inline = _ask(own, "two", examples).json()
    uploaded = httpx.post(path, json={"file": upload["id"], "record": True}, timeout=120).json()
    _assert_equal_but_for_rounding(uploaded, inline)
    [kept] = own.registry.evaluations.of_version(own.registry.resolve("two"))
    assert (kept.data_name, kept.data_sha256) == ("test.jsonl", inline["data_sha256"])
    gate = httpx.put(f"{own.url}/v1/tasks/two/aliases/live", json={"version": 1, "gate": {"file": upload["id"]}})
    assert gate.json()["gate"]["data_sha256"] == inline["data_sha256"]
    seen = httpx.post(f"{own.url}/v1/tasks/two/tokens", json={"file": upload["id"]}, timeout=120).json()
    assert seen["effects"]["data_sha256"] == inline["data_sha256"]
    missing = httpx.post(path, json={"file": "file-none"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "file")
    for body in ({}, {"file": upload["id"], "examples": [{"input": "x", "target": "positive"}]}):
        assert httpx.post(path, json=body).status_code == 400


def test_an_evaluation_leaves_the_queue_to_others(own: LiveServer) -> None:
    """At no time are there more of its sequences than it may have."""
    seen = []

    async def watch() -> None:
        target = await own.part(TaskFinder).find("many")
        evaluation = asyncio.ensure_future(
            own.part(Evaluator).evaluate(target, _examples(own, "many"), Call.within(60.0))
        )
        while not evaluation.done():
            stats = own.engine.stats
            seen.append(stats.num_running + stats.num_waiting)
            await asyncio.sleep(0.001)
        await evaluation

    asyncio.run_coroutine_threadsafe(watch(), own.loop).result()
    assert 0 < max(seen) <= 32


def test_a_client_that_leaves_ends_its_evaluation(own: LiveServer) -> None:
    items = [{"input": f"film {number}", "target": "x"} for number in range(4000)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{own.url}/v1/tasks/text/evaluate",
            json={"examples": items},
            timeout=httpx.Timeout(60, read=0.5),
        )
    deadline = time.monotonic() + 2
    while own.engine._num_open:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_deadline_ends_an_evaluation(own: LiveServer) -> None:
    async def hurry() -> None:
        target = await own.part(TaskFinder).find("text")
        await own.part(Evaluator).evaluate(target, _examples(own, "text"), Call.within(0.001))

    with pytest.raises(DeadlineExceeded):
        asyncio.run_coroutine_threadsafe(hurry(), own.loop).result()
