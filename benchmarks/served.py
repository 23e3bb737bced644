"""A server in a process of its own, with the demo backbone and a copy of the demo tasks, and a job that it works on."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

from app.cli.remote.remote_server import RemoteServer
from app.settings import DEMO_BACKBONE
from benchmarks.server import ROOT, serve

PROMPTS = ROOT / "prompts"


@dataclass
class Served:
    """A running server."""

    host: str
    port: int
    server: RemoteServer = field(repr=False)

    def metric(self, name: str) -> float:
        """A counter's or gauge's present value."""
        text = self.server.fetch("GET", "/metrics").decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)

    def upload(self, examples: bytes) -> str:
        """Id of the file."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n',
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="examples.jsonl"\r\n\r\n',
        ]
        body = "".join(parts).encode() + examples + f"\r\n--{boundary}--\r\n".encode()
        request = Request(
            f"http://{self.host}:{self.port}/v1/files",
            body,
            {"content-type": f"multipart/form-data; boundary={boundary}"},
        )
        with urlopen(request) as answer:
            return str(re.search(r"file-[0-9a-f]+", answer.read().decode())[0])  # type: ignore[index]


@contextmanager
def serve_demo() -> Iterator[Served]:
    with TemporaryDirectory() as folder:
        registry = Path(folder) / "prompts"
        shutil.copytree(PROMPTS, registry, ignore=shutil.ignore_patterns(".state", ".lock"))
        with serve(DEMO_BACKBONE, registry) as running:
            yield Served(running.host, running.port, RemoteServer(running.url, None))


class SteadyJob:
    """A fine-tuning job that is there whenever it is wanted: when one has ended, the next one begins.

    Args: request: beside `model` and `training_file`.
    """

    def __init__(self, served: Served, training_file: str, request: Mapping[str, Any]) -> None:
        self._served = served
        self._request = {"model": "backbone", "training_file": training_file, "suffix": "busy", **request}
        self._ids: list[str] = []

    def resume(self) -> None:
        """Begin or go on; it runs when this returns."""
        if self._status == "paused":
            self._served.server.call("POST", f"/v1/fine_tuning/jobs/{self._ids[-1]}/resume")
        elif self._status not in {"queued", "running"}:
            self._ids.append(self._served.server.call("POST", "/v1/fine_tuning/jobs", self._request)["id"])
        self._wait_for({"running"})

    def keep_running(self) -> None:
        """Begin the next one if the present one has ended."""
        if self._status not in {"queued", "running"}:
            self.resume()

    def pause(self) -> None:
        """It no longer asks for the device when this returns."""
        if self._status in {"queued", "running"}:
            self._served.server.call("POST", f"/v1/fine_tuning/jobs/{self._ids[-1]}/pause")
        device_s = -1.0
        while (now_s := self._served.metric("softswap_tuning_device_seconds_total")) > device_s:
            device_s = now_s
            time.sleep(0.5)

    def num_updates(self) -> int:
        """Of all jobs so far."""
        return sum(self._num_updates(job_id) for job_id in self._ids)

    @property
    def num_jobs(self) -> int:
        return len(self._ids)

    @property
    def _status(self) -> str:
        if not self._ids:
            return "none"
        status = str(self._served.server.call("GET", f"/v1/fine_tuning/jobs/{self._ids[-1]}")["status"])
        assert status != "failed", "the job failed; see the server's log"
        return status

    def _num_updates(self, job_id: str) -> int:
        events = self._served.server.call("GET", f"/v1/fine_tuning/jobs/{job_id}/events?limit=100")["data"]
        steps = [event["data"]["step"] for event in events if (event.get("data") or {}).get("step") is not None]
        return max(steps, default=0)

    def _wait_for(self, statuses: set[str]) -> None:
        while self._status not in statuses:
            time.sleep(0.1)
