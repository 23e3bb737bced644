"""More than the queue holds is refused at once, and says when to come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import InternalServerError, OpenAI

from app.model.backbone import Backbone
from tests.support.server import LiveServer, make_settings, publish_tasks, run_server

LONG = {"model": "tiny-llama", "prompt": "x", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def small(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    settings = make_settings(tmp_path_factory.mktemp("prompts"), max_num_seqs=2, max_waiting_requests=2)
    with run_server(settings, backbone) as live:
        publish_tasks(live.registry, backbone)
        yield live


def test_a_full_queue_is_503_with_retry_after_and_the_rest_is_served(small: LiveServer) -> None:
    def ask(number: int) -> tuple[httpx.Response, float]:
        with httpx.Client(base_url=small.url, timeout=120) as client:
            client.get("/health")
            began = time.perf_counter()
            return client.post("/v1/completions", json=LONG), time.perf_counter() - began

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    refused = [(answer, taken_s) for answer, taken_s in answers if answer.status_code != 200]
    served = [(answer, taken_s) for answer, taken_s in answers if answer.status_code == 200]
    assert refused
    assert len(served) >= 3
    for answer, _ in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
    assert min(taken_s for _, taken_s in refused) < min(taken_s for _, taken_s in served)


EXAMPLE = {"input": "x", "target": "y"}
QUESTION = {"type": "choice", "instructions": "Which?", "choices": [{"value": f"{k} of {k}"} for k in range(10)]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "tiny-llama", "prompt": [f"p{k}" for k in range(8)], "n": 4, "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "tiny-llama", "messages": [{"role": "user", "content": "x"}], "n": 8}),
        ("/v1/decisions", {"model": "tiny-llama", "input": "x", "questions": [QUESTION] * 10}),
        ("/v1/run", [{"task": task, "input": f"text {k}"} for k in range(10) for task in ("headline", "sentiment")]),
        ("/v1/tasks/headline/evaluate", {"examples": [EXAMPLE] * 20}),
        ("/v1/tasks/sentiment/evaluate", {"examples": [{**EXAMPLE, "target": "positive"}] * 20}),
    ],
)
def test_no_call_is_refused_for_its_own_size(small: LiveServer, path: str, body: object) -> None:
    answer = httpx.post(f"{small.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text


def test_the_sdk_comes_back_by_itself(small: LiveServer) -> None:
    client = OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=5, timeout=120)
    impatient = OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0, timeout=120)
    body = {**LONG, "max_tokens": 100}
    body.pop("ignore_eos")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.completions.create(**body), range(8)))
    assert len(answers) == 8
    with ThreadPoolExecutor(8) as pool, pytest.raises(InternalServerError):
        list(pool.map(lambda _: impatient.completions.create(**body, extra_body={"ignore_eos": True}), range(8)))


def test_refusals_are_counted(small: LiveServer) -> None:
    metrics = httpx.get(f"{small.url}/metrics").text
    assert "softswap_admission_rejections_total{" in metrics
