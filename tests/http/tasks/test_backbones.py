"""Servers of two backbones on one registry: each answers with its own versions, and neither touches the other's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.model.layout import Template
from app.registry.publication import Publication
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder
from tests.support.server import LABELS, REVIEW, LiveServer, make_settings, run_server, soft_prompt

SMALL, LARGE = "tiny-llama", "tiny-qwen2"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[LiveServer, LiveServer]]:
    """Both watch one folder. mood has version 1 for the first and 2 for the second; only is the first one's alone."""
    with memory_folder() as folder:
        settings = [make_settings(folder / "prompts", watch_interval=0.05, state=folder / name) for name in "ab"]
        with (
            run_server(settings[0], tiny_backbone("llama")) as first,
            run_server(settings[1], tiny_backbone("qwen2")) as second,
        ):
            publish(first, "mood")
            publish(second, "mood")
            publish(first, "only")
            for live in (first, second):
                wait_until(lambda live=live: {"mood", "only"} <= {task.task for task in live.registry.tasks()})
            yield first, second


def publish(live: LiveServer, task: str, *, seed: int = 0, alias: str | None = "live") -> str:
    prompt = soft_prompt(live.backbone, seed=seed)
    publication = Publication(prompt, template=Template(REVIEW), labels=LABELS)
    return live.registry.publish(task, publication, alias=alias).id


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_both_answer_the_same_name_with_their_own_versions(servers: tuple[LiveServer, LiveServer]) -> None:
    for live, version in zip(servers, ("mood@1", "mood@2"), strict=True):
        for name in ("mood", version, "mood@live"):
            answer = httpx.post(f"{live.url}/v1/tasks/{name}/run", json={"input": "a dull mess"})
            assert (answer.status_code, answer.json()["model"]) == (200, version)
        completion = httpx.post(f"{live.url}/v1/completions", json={"model": "mood", "prompt": "a", "max_tokens": 1})
        assert completion.json()["model"] == version


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tasks/mood@1/run", {"input": "a"}),
        ("POST", "/v1/tasks/mood@2+1/run", {"input": "a"}),
        ("POST", "/v1/run", [{"task": "mood@1", "input": "a"}]),
        ("POST", "/v1/completions", {"model": "mood@1", "prompt": "a"}),
        ("POST", "/v1/chat/completions", {"model": "mood@1", "messages": [{"role": "user", "content": "a"}]}),
        ("POST", "/v1/decisions", {"model": "mood@1", "input": "a"}),
        ("POST", "/v1/tasks/mood@1/evaluate", {"examples": [{"input": "a", "target": "negative"}]}),
        ("POST", "/v1/fine_tuning/jobs", {"model": "mood@1", "training_file": "file-1"}),
        ("GET", "/v1/tasks/mood@1/tokens", None),
        ("GET", "/v1/models/mood@1", None),
        ("PUT", "/v1/tasks/mood/aliases/live", {"version": 1}),
        ("PUT", "/v1/tasks/mood/aliases/live", {"weights": {"1": 0.5, "2": 0.5}}),
        ("DELETE", "/v1/tasks/mood/versions/1", None),
        ("DELETE", "/v1/models/mood@1", None),
    ],
)
def test_a_version_for_the_other_backbone_is_a_404_that_names_it(
    servers: tuple[LiveServer, LiveServer], method: str, path: str, body: object
) -> None:
    _, second = servers
    refused = httpx.request(method, second.url + path, json=body)
    assert refused.status_code == 404
    message = refused.json()["error"]["message"]
    assert f"mood@1 was made for {SMALL}, not for {LARGE}; for that there is mood@2" in message


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/tasks/only/run", {"input": "a"}),
        ("POST", "/v1/completions", {"model": "only", "prompt": "a"}),
        ("GET", "/v1/models/only", None),
        ("DELETE", "/v1/tasks/only", None),
        ("DELETE", "/v1/models/only", None),
    ],
)
def test_a_task_that_has_no_version_for_the_backbone_says_so_and_what_to_do(
    servers: tuple[LiveServer, LiveServer], method: str, path: str, body: object
) -> None:
    first, second = servers
    refused = httpx.request(method, second.url + path, json=body)
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == (
        f"task only has no version for {LARGE}; it has versions for {SMALL}; make one with "
        f"`softswap retune only --model {LARGE}`"
    )
    assert first.registry.resolve("only").number == 1


def test_a_server_lists_what_it_can_answer_and_says_of_the_rest_what_is_missing(
    servers: tuple[LiveServer, LiveServer],
) -> None:
    first, second = servers
    names = [[model["id"] for model in httpx.get(f"{live.url}/v1/models").json()["data"]] for live in servers]
    assert names == [[SMALL, "mood", "only"], [LARGE, "mood"]]
    listed = {task["id"]: task for task in httpx.get(f"{second.url}/v1/tasks").json()["data"]}
    assert (listed["mood"]["live"]["id"], listed["mood"]["missing"]) == ("mood@2", None)
    assert (listed["only"]["live"], listed["only"]["aliases"]) == (None, {})
    assert listed["only"]["missing"].startswith(f"no version for {LARGE}; it has versions for {SMALL};")
    assert all(task["missing"] is None for task in httpx.get(f"{first.url}/v1/tasks").json()["data"])
    backbones = {each["name"]: each for each in httpx.get(f"{first.url}/v1/tasks/mood").json()["backbones"]}
    assert {name: (each["live"]["id"], each["aliases"]) for name, each in backbones.items()} == {
        SMALL: ("mood@1", {"live": 1}),
        LARGE: ("mood@2", {"live": 2}),
    }
    versions = httpx.get(f"{second.url}/v1/tasks/mood/versions").json()["data"]
    assert [(each["id"], each["backbone_name"]) for each in versions] == [("mood@2", LARGE), ("mood@1", SMALL)]
    shown = httpx.get(f"{second.url}/v1/tasks/mood/versions/1").json()
    assert (shown["id"], shown["backbone_name"]) == ("mood@1", SMALL)
    assert httpx.get(f"{second.url}/v1/tasks/mood/versions/1/evaluations").json()["data"] == []


def test_each_publishes_moves_and_deletes_its_own_while_the_other_serves(
    servers: tuple[LiveServer, LiveServer],
) -> None:
    """One thread for each server publishes, moves and deletes; two others ask meanwhile."""
    surprises: list[object] = []
    answered: dict[str, set[str]] = {live.url: set() for live in servers}
    done = threading.Event()

    def write(live: LiveServer) -> None:
        for turn in range(6):
            number = publish(live, "busy", seed=turn, alias="live").partition("@")[2]
            canary = publish(live, "busy", seed=turn, alias=None).partition("@")[2]
            for alias in ("canary", "live"):
                moved = httpx.put(f"{live.url}/v1/tasks/busy/aliases/{alias}", json={"version": int(canary)})
                surprises.extend([moved.text] if moved.status_code != 200 else [])
            gone = httpx.delete(f"{live.url}/v1/tasks/busy/versions/{number}")
            surprises.extend([gone.text] if gone.status_code != 200 else [])

    def ask(live: LiveServer) -> None:
        while not done.is_set():
            answer = httpx.post(f"{live.url}/v1/tasks/busy/run", json={"input": "a"})
            if answer.status_code != 200:
                surprises.append(answer.text)
                return
            answered[live.url].add(answer.json()["model"])

    for live, version in zip(servers, ("busy@1", "busy@2"), strict=True):
        assert publish(live, "busy") == version
    askers = [threading.Thread(target=ask, args=(live,)) for live in servers]
    writers = [threading.Thread(target=write, args=(live,)) for live in servers]
    for thread in (*askers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in askers:
        thread.join()
    assert surprises == []
    assert all(answered.values())
    assert set.isdisjoint(*answered.values())
    for live in servers:
        live.registry.refresh()
    first, second = (live.registry.task("busy") for live in servers)
    assert first.backbones == second.backbones
    assert [each.num_versions for each in first.backbones] == [7, 7]
    assert first.aliases == first.backbones[0].aliases == {"live": first.live.number, "canary": first.live.number}
    assert second.aliases == second.backbones[1].aliases == {"live": second.live.number, "canary": second.live.number}
