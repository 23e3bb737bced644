"""A path that no route takes is answered with the route that was meant; a name of nothing, with where names are."""

from __future__ import annotations

import httpx
import pytest

from tests.support.server import LiveServer

GENERIC = "There is no such route. GET /docs shows all of them."


def _message(answer: httpx.Response) -> str:
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/completions", "/v1/completions"),
        ("GET", "/models", "/v1/models"),
        ("POST", "/files", "/v1/files"),
        ("POST", "/fine_tuning/jobs", "/v1/fine_tuning/jobs"),
        ("GET", "/fine_tuning/jobs/ftjob-1/events", "/v1/fine_tuning/jobs/{fine_tuning_job_id}/events"),
        ("POST", "/tasks/sentiment/run", "/v1/tasks/{task}/run"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/openai/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/openai/deployments/gpt-4o/chat/completions?api-version=1", "/v1/chat/completions"),
        ("POST", "//v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
        ("GET", "/v1/tasks/", "/v1/tasks"),
        ("POST", "/v1/chat/completion", "/v1/chat/completions"),
        ("POST", "/v1/task/sentiment/run", "/v1/tasks/{task}/run"),
        ("POST", "/v1/tasks/sentiment/evaluation", "/v1/tasks/{task}/evaluate"),
        ("POST", "/v1/fine-tuning/jobs", "/v1/fine_tuning/jobs"),
        ("POST", "/V1/Completions", "/v1/completions"),
        ("GET", "/v1/health", "/health"),
        ("GET", "/v1/metrics", "/metrics"),
        ("GET", "/healthz", "/health"),
    ],
)
def test_the_route_that_was_meant_is_named(http: httpx.Client, method: str, path: str, meant: str) -> None:
    answer = http.request(method, path, json={} if method == "POST" else None)
    assert _message(answer) == f"There is no such route; did you mean {meant}? GET /docs shows all of them."


@pytest.mark.parametrize(
    "path", ["/nothing/like/it", "/v1", "/v1/embeddings", "/v1/" + "completions/" * 2000, "/v1/%00"]
)
def test_what_is_near_no_route_gets_no_guess(http: httpx.Client, path: str) -> None:
    assert _message(http.post(path, json={})) == GENERIC


def test_a_guess_repeats_nothing_of_what_was_sent(http: httpx.Client) -> None:
    assert "secret" not in http.post("/tasks/secret-name/run", json={}).text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"model": "gpt-4o", "prompt": "x"}),
        ("/v1/completions", {"model": "meta-llama/Llama-3.1-8B", "prompt": "x"}),
        ("/v1/completions", {"model": "gpt-4o+gpt-5", "prompt": "x"}),
        ("/v1/completions", {"model": "gpt-4o@3", "prompt": "x"}),
        ("/v1/decisions", {"model": "gpt-4o", "input": "x"}),
        ("/v1/run", [{"task": "gpt-4o", "input": "x"}]),
        ("/v1/tasks/gpt-4o/run", {"input": "x"}),
        ("/v1/fine_tuning/jobs", {"model": "gpt-4o", "training_file": "file-x"}),
    ],
)
def test_a_name_that_stands_for_nothing_comes_with_where_names_are(http: httpx.Client, path: str, body: object) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 404)
    if answer.status_code == 404:
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["message"].endswith("GET /v1/models lists them")
    else:
        assert body["model"] == "gpt-4o+gpt-5"


def test_what_is_missing_of_a_task_that_exists_is_not_looked_for_among_tasks(http: httpx.Client) -> None:
    for path in ("/v1/models/sentiment@99", "/v1/files/file-none", "/v1/fine_tuning/jobs/ftjob-none"):
        assert "GET /v1/models" not in http.get(path).json()["error"]["message"]


def test_no_route_is_named_to_the_wrong_end(server: LiveServer) -> None:
    """Every route, without its first segment or with a slash at its end, is found again."""
    paths = {route.path_format for route in server.routes if route.path_format.startswith("/v1/")}
    for path in sorted(paths - {"/v1/models/{model}"}):
        filled = path.replace("{", "").replace("}", "")
        said = _message(httpx.post(f"{server.url}{filled.removeprefix('/v1')}"))
        assert f"did you mean {path}?" in said
