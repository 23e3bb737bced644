"""Publishing, moving aliases and deleting while clients infer: no error, and no answer from another version."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from app.model.backbone import Backbone
from app.registry.publication import Publication
from tests.support.server import LiveServer, make_settings, run_server, soft_prompt

pytestmark = pytest.mark.slow

NUM_CLIENTS = 16
NUM_OPERATIONS = int(os.environ.get("SWAP_OPERATIONS", "200"))
"""The full figure is 1,000; CI runs fewer to stay quick."""
MAX_TOKENS = 3


@pytest.fixture
def live(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with run_server(make_settings(tmp_path_factory.mktemp("prompts")), backbone) as server:
        yield server


class _Writer:
    """Publishes, moves and deletes, and remembers which prompt each version number was given."""

    def __init__(self, server: LiveServer, backbone: Backbone) -> None:
        self._registry = server.registry
        self._backbone = backbone
        self._random = random.Random(0)
        self._here: list[int] = []
        self.number_to_seed: dict[int, int] = {}

    def publish(self) -> None:
        seed = self._random.randrange(6)
        # The number is known only afterwards, so a client may see it before this table does; it is read at the end.
        version = self._registry.publish("task", Publication(soft_prompt(self._backbone, seed=seed)))
        self.number_to_seed[version.number] = seed
        self._here.append(version.number)

    def move(self) -> None:
        self._registry.set_alias("task", "live", self._random.choice(self._here[-3:]))

    def delete(self) -> None:
        live = self._registry.task("task").aliases["live"]
        gone = next((number for number in self._here if number != live), None)
        if gone is not None and len(self._here) > 3:
            self._here.remove(gone)
            self._registry.delete_version("task", gone)

    def work(self, num_operations: int) -> None:
        for _ in range(num_operations):
            self._random.choice((self.publish, self.move, self.delete))()


def test_no_error_and_no_answer_of_another_version(live: LiveServer, backbone: Backbone) -> None:
    writer = _Writer(live, backbone)
    writer.publish()
    is_over = threading.Event()

    def infer() -> list[tuple[int, str, str]]:
        seen = []
        with httpx.Client(base_url=live.url, timeout=60) as client:
            while not is_over.is_set():
                body = {"input": "hello", "max_tokens": MAX_TOKENS, "ignore_eos": True}
                answer = client.post("/v1/tasks/task/run", json=body)
                said = answer.json()
                seen.append((answer.status_code, said.get("model", ""), said.get("text", answer.text)))
        return seen

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients: list[Future[list[tuple[int, str, str]]]] = [pool.submit(infer) for _ in range(NUM_CLIENTS)]
        try:
            writer.work(NUM_OPERATIONS)
        finally:
            is_over.set()
        seen = [each for client in clients for each in client.result()]
    seed_to_text = {seed: _text_of(live, backbone, seed) for seed in range(6)}
    assert len(set(seed_to_text.values())) == 6, "each prompt has an answer of its own, or this test sees nothing"
    assert len(seen) >= NUM_CLIENTS
    assert {status for status, _, _ in seen} == {200}
    foreign = [
        (model, text)
        for _, model, text in seen
        if text != seed_to_text[writer.number_to_seed[int(model.removeprefix("task@"))]]
    ]
    assert foreign == []
    assert len({model for _, model, _ in seen}) > 3, "the clients saw the task change"


def _text_of(live: LiveServer, backbone: Backbone, seed: int) -> str:
    live.registry.publish(f"alone-{seed}", Publication(soft_prompt(backbone, seed=seed)))
    body = {"input": "hello", "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return str(httpx.post(f"{live.url}/v1/tasks/alone-{seed}/run", json=body, timeout=60).json()["text"])
