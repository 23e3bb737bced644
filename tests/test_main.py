"""The server as a process: it starts, says when it is ready, and stops without losing what it took on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.address import bind
from app.errors import InvalidInput
from app.main import describe_tasks, open_engine
from app.model.backbone import Backbone
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.settings import Settings
from tests.support.models import tiny_backbone
from tests.support.server import soft_prompt
from tests.support.tuning_jobs import DATA

pytestmark = pytest.mark.slow

NUM_IN_FLIGHT = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    backbone = tiny_backbone()
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Process:
    process: subprocess.Popen[str]
    url: str
    log: list[str]


@contextmanager
def serving(checkpoint: Path, registry: Path, *arguments: str) -> Iterator[Process]:
    registry.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "app.cli", "serve", "--model", str(checkpoint), "--registry", str(registry)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )
    log: list[str] = []
    address: list[str] = []

    def read() -> None:
        for line in process.stderr:
            log.append(line)
            if "listening on http://" in line:
                address.append(json.loads(line)["message"].removeprefix("listening on "))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 120
        while not address or not _is_ready(address[0]):
            assert process.poll() is None, "".join(log)
            assert time.monotonic() < deadline, "".join(log)
            time.sleep(0.05)
        yield Process(process, address[0], log)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _complete(url: str, number: int, *, max_tokens: int, is_streamed: bool) -> tuple[int, str]:
    """Status, and the text, with any error of a stream in it."""
    body = {
        "model": "tiny",
        "prompt": f"number {number}",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": is_streamed,
    }
    with httpx.Client(timeout=120) as client:
        answer = client.post(f"{url}/v1/completions", json=body)
        return answer.status_code, answer.text


def _await_running(url: str, num: int) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/v1/server").json()["engine"]["num_running"] < num:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_loses_nothing_that_fits_the_deadline(checkpoint: Path, tmp_path: Path) -> None:
    with (
        serving(checkpoint, tmp_path / "prompts", "--shutdown-timeout", "60") as server,
        ThreadPoolExecutor(40) as pool,
    ):
        answers = [
            pool.submit(_complete, server.url, number, max_tokens=300, is_streamed=number % 2 == 0)
            for number in range(NUM_IN_FLIGHT)
        ]
        _await_running(server.url, NUM_IN_FLIGHT)
        kept = httpx.Client(base_url=server.url, timeout=60)
        assert kept.get("/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while (ready := kept.get("/ready")).status_code == 200:
            assert time.monotonic() < deadline
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        refused = kept.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert kept.get("/health").status_code == 200
        results = [answer.result() for answer in answers]
        assert [status for status, _ in results] == [200] * NUM_IN_FLIGHT
        for number, (_, text) in enumerate(results):
            assert text.endswith("data: [DONE]\n\n") if number % 2 == 0 else json.loads(text)["choices"]
            assert '"finish_reason":"length"' in text
            assert '"error"' not in text
        assert server.process.wait(timeout=30) == 0


def test_what_does_not_fit_the_deadline_ends_with_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path / "prompts", "--shutdown-timeout", "0") as server, ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(_complete, server.url, number, max_tokens=490, is_streamed=number % 2 == 0)
            for number in range(8)
        ]
        _await_running(server.url, 8)
        server.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        for number, answer in enumerate(answers):
            status, text = answer.result()
            assert '"draining"' in text or '"finish_reason":"length"' in text
            assert status == (200 if number % 2 == 0 else 503) or '"finish_reason":"length"' in text
            assert number % 2 or text.endswith("data: [DONE]\n\n")
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """With Nagle's algorithm on, headers and body would lie 40 ms apart."""

    async def accept() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        address = bind("127.0.0.1", 0)
        async with await asyncio.start_server(look, sock=address):
            _, client = await asyncio.open_connection(*address.getsockname())
            client.close()
            return await accepted

    assert asyncio.run(accept()) == 1


def test_a_taken_port_is_one_line_that_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(InvalidInput, match="--port"):
        bind("127.0.0.1", port)
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--model", str(checkpoint)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    taken.close()
    assert done.returncode == 1
    assert done.stderr.startswith(f"softswap: cannot listen on 127.0.0.1:{port}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "attention", "threads"),
    [
        ((), r"attend_(compiled|sdpa) .*\((?!as told)", r"\((?!as told)"),
        (("--attention", "sdpa", "--threads", "3"), r"attend_sdpa .*as told", r"3 \(as told\)"),
    ],
)
def test_the_log_says_what_computes_and_why(
    arguments: tuple[str, ...], attention: str, threads: str, checkpoint: Path, tmp_path: Path
) -> None:
    with serving(checkpoint, tmp_path / "prompts", *arguments) as server:
        for wanted in (f"attention: {attention}", f"threads: .*{threads}"):
            assert sum(bool(re.search(wanted, line)) for line in server.log) == 1
        assert _complete(server.url, 1, max_tokens=3, is_streamed=False)[0] == 200


def test_a_registry_that_is_not_there_is_warned_about(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine(Settings(model=str(checkpoint), registry=tmp_path / "misspelt", watch_interval=0)):
        assert caplog.messages[0] == f"there is no registry at {tmp_path / 'misspelt'} yet, so there are no tasks"


def test_tasks_of_another_backbone_are_counted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # tasks that whoever runs this has made are not counted
    with open_engine(Settings(model=str(checkpoint), watch_interval=0)) as opened:
        assert describe_tasks(opened.registry) == "0 tasks; 7 more for other backbones (demo)"


def test_a_folder_dropped_into_the_registry_is_served(checkpoint: Path, tmp_path: Path) -> None:
    registry = tmp_path / "prompts"
    with serving(checkpoint, registry, "--watch-interval", "0.1") as server:
        assert any("ready: tiny on cpu, 0 tasks" in line for line in server.log)
        backbone = Backbone.load(checkpoint)
        Registry(FileStore(registry), backbone).publish("dropped", Publication(soft_prompt(backbone)))
        deadline = time.monotonic() + 20
        while httpx.get(f"{server.url}/v1/models/dropped").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answer = httpx.post(f"{server.url}/v1/tasks/dropped/run", json={"input": "x", "max_tokens": 2}, timeout=60)
        assert answer.json()["model"] == "dropped@1"


def test_a_job_outlives_a_kill_and_a_stop_of_its_server(checkpoint: Path, tmp_path: Path) -> None:
    """And a client that follows it gets every event once, whatever becomes of its connections."""
    registry, ids = tmp_path / "prompts", []
    route = "/v1/fine_tuning/jobs"
    for number, signal_number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        with serving(checkpoint, registry) as server:
            if number == 0:
                form = {"files": {"file": ("likes.jsonl", DATA)}, "data": {"purpose": "fine-tune"}}
                file = httpx.post(f"{server.url}/v1/files", **form).json()
                wanted = {"max_steps": 150, "batch_size": 8, "init": "vocab", "patience": 0, "seeds": 0}
                method = {"type": "prompt_tuning", "prompt_tuning": {"hyperparameters": wanted}}
                body = {"model": "tiny", "training_file": file["id"], "suffix": "likes", "method": method}
                job = httpx.post(f"{server.url}{route}", json=body).json()["id"]
            ids += _follow_for(server.url, f"{route}/{job}/events", 40, ids)
            server.process.send_signal(signal_number)
            assert server.process.wait(timeout=30) == (0 if signal_number == signal.SIGTERM else -9)
            assert _status_on_disk(registry, job) == ("queued" if signal_number == signal.SIGTERM else "running")
    with serving(checkpoint, registry) as server:
        ids += _follow_for(server.url, f"{route}/{job}/events", 10_000, ids)
        ended = httpx.get(f"{server.url}{route}/{job}").json()
        events = httpx.get(f"{server.url}{route}/{job}/events?limit=1000").json()["data"]
        answer = httpx.post(f"{server.url}/v1/tasks/likes/run", json={"input": "good 5"}, timeout=60).json()
    assert ended["status"] == "succeeded"
    assert answer["model"] == ended["fine_tuned_model"]
    assert ids == [event["id"] for event in reversed(events)]
    steps = [event["data"]["step"] for event in reversed(events) if event["data"] and "train_loss" in event["data"]]
    assert steps == list(range(1, 151))


def _follow_for(url: str, path: str, num_events: int, seen: list[str]) -> list[str]:
    """Ids of at most `num_events` events after those that were seen."""
    ids: list[str] = []
    headers = {"last-event-id": seen[-1]} if seen else {}
    with httpx.stream("GET", f"{url}{path}?stream=true", headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                ids.append(line.removeprefix("id: "))
            if len(ids) == num_events:
                break
    return ids


def _status_on_disk(registry: Path, job: str) -> str:
    with closing(sqlite3.connect(registry / ".state" / "jobs.sqlite3")) as database:
        [(status,)] = database.execute("SELECT status FROM jobs WHERE id = ?", [job]).fetchall()
    return status
