"""A server computes what its registry names before anybody asks, and requests go first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.answers.prompt_warmer import PromptWarmer
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.task_prompt import TaskPrompt
from tests.support.models import tiny_backbone
from tests.support.server import LiveServer, make_settings, publish_tasks, run_server, soft_prompt

BACKBONE = tiny_backbone()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.answers.prompt_warmer.INTERVAL_S", 0.02)
    monkeypatch.setattr("app.answers.prompt_warmer.REST_S", 0.02)


def wait_for(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s, "it does not come to pass"
        time.sleep(0.01)


def is_warm(live: LiveServer, name: str) -> bool:
    digest = live.registry.resolve(name).digest
    return digest in live.engine._engine.scheduler.prefix_cache


def cached_tokens(live: LiveServer, name: str) -> int:
    body = {"model": name, "prompt": "Some text", "max_tokens": 1}
    usage = httpx.post(f"{live.url}/v1/completions", json=body, timeout=60).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_the_first_request_of_a_task_finds_its_prompt_computed(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path, warm_prompts=True), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        live.registry.set_alias("sentiment", "old", 1)
        for name in ("sentiment", "sentiment@old", "headline", "raw"):
            wait_for(lambda name=name: is_warm(live, name))
        assert cached_tokens(live, "headline") == live.registry.resolve("headline").num_virtual_tokens
        live.registry.publish("headline", Publication(soft_prompt(BACKBONE, rows=9, seed=77)))
        wait_for(lambda: is_warm(live, "headline"))
        assert cached_tokens(live, "headline") == 9


def test_versions_that_no_alias_names_are_left_alone(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path, warm_prompts=True), BACKBONE) as live:
        live.registry.publish("mood", Publication(soft_prompt(BACKBONE, seed=1)))
        live.registry.publish("mood", Publication(soft_prompt(BACKBONE, seed=2)), alias=None)
        wait_for(lambda: is_warm(live, "mood@1"))
        time.sleep(0.2)
        assert not is_warm(live, "mood@2")


def test_nothing_is_computed_ahead_where_that_is_switched_off(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        time.sleep(0.3)
        assert not is_warm(live, "raw")


class PretendEngine:
    """Warms at once; is busy, or has no room, as often as it is told."""

    def __init__(self, *, num_busy: int = 0, num_full: int = 0) -> None:
        self.num_busy, self.num_full = num_busy, num_full
        self.warmed: list[TaskPrompt] = []

    @property
    def is_idle(self) -> bool:
        self.num_busy -= 1
        return self.num_busy < 0

    def wants_warm(self, digest: str, *_: object) -> bool:
        return digest not in [prompt.digest for prompt in self.warmed]

    def warm(self, prompt: TaskPrompt) -> bool:
        assert self.num_busy < 0, "requests go first"
        self.num_full -= 1
        if self.num_full < 0:
            self.warmed.append(prompt)
        return self.num_full < 0


def make_warmer(registry: Registry, engine: object, fingerprint: str = BACKBONE.fingerprint) -> PromptWarmer:
    return PromptWarmer(registry, engine, fingerprint)  # type: ignore[arg-type]


@pytest.mark.parametrize("hindrance", ["num_busy", "num_full"])
def test_it_continues_once_requests_have_ended_or_there_is_room(tmp_path: Path, hindrance: str) -> None:
    with run_server(make_settings(tmp_path), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        engine = PretendEngine(**{hindrance: 5})
        warmer = make_warmer(live.registry, engine)
        warmer.start()
        wait_for(lambda: len(engine.warmed) == 3)
        warmer.close()


def test_closing_does_not_wait_for_an_engine_that_is_never_idle(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        warmer = make_warmer(live.registry, PretendEngine(num_busy=10**9))
        warmer.start()
        time.sleep(0.1)
        began_s = time.monotonic()
        warmer.close()
        warmer.close()
        assert time.monotonic() - began_s < 5


def test_what_cannot_be_computed_is_said_once_and_keeps_no_one_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with run_server(make_settings(tmp_path), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        version = live.registry.resolve("headline")
        live.registry._cache._digest_to_prompt.clear()
        (weights,) = tmp_path.glob(f"headline/{version.number}/*.safetensors")
        weights.write_bytes(b"rotten")
        engine = PretendEngine()
        warmer = make_warmer(live.registry, engine)
        warmer.start()
        wait_for(lambda: len(engine.warmed) == 2)
        time.sleep(0.2)
        warmer.close()
        assert caplog.text.count(f"{version.id} cannot be computed ahead") == 1


def test_prompts_of_another_backbone_are_left_alone(tmp_path: Path) -> None:
    with run_server(make_settings(tmp_path), BACKBONE) as live:
        publish_tasks(live.registry, BACKBONE)
        engine = PretendEngine()
        warmer = make_warmer(live.registry, engine, fingerprint="0" * 64)
        warmer.start()
        time.sleep(0.2)
        warmer.close()
        assert not engine.warmed
