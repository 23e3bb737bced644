"""`softswap serve` in a process of its own, with a shape's random weights and the benchmark's tasks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import urlopen

from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import TaskPrompt

ROOT = Path(__file__).parents[1]
LISTENING = re.compile(r"listening on http://([\d.]+):(\d+)")
START_TIMEOUT_S = 300.0
TEMPLATE = Template("{input}{target}")


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, and the process that it is."""

    host: str
    port: int
    process_id: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def cpu_s(self) -> float:
        """Of all its threads so far, fields utime and stime of proc_pid_stat(5)."""
        fields = Path(f"/proc/{self.process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/ready"):
                return True
        except (URLError, ConnectionError):
            return False

    def wait_until_ready(self) -> None:
        """For one that was stopped: it refuses requests until its engine has shown that it lives."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready:
            assert time.monotonic() < deadline_s, "the server does not become ready again"
            time.sleep(0.02)


def publish_tasks(folder: Path, backbone: Backbone, prompts: Sequence[TaskPrompt], labels: Sequence[str] = ()) -> None:
    """Each prompt as `task0`, `task1` and so on, with a template that is the bare input."""
    registry = Registry(FileStore(folder), backbone)
    for index, prompt in enumerate(prompts):
        registry.publish(f"task{index}", Publication(prompt, template=TEMPLATE, labels=labels))
    registry.close()


@contextmanager
def serve(model: Path, registry: Path, *, tree: Path = ROOT, **settings: object) -> Iterator[RunningServer]:
    """Args:
    tree: of sources, whose server it is.
    settings: more of `softswap serve`'s, by their names in docs/settings.md.
    """
    environment = {f"SOFTSWAP_{name.upper()}": str(value) for name, value in settings.items()}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve", "--model", model, "--registry", registry, "--port", "0"],
                stdout=stream,
                stderr=stream,
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree), "SOFTSWAP_STATE": folder, **environment},
            )
        try:
            yield _started(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _started(process: subprocess.Popen[bytes], log: Path) -> RunningServer:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        time.sleep(0.02)
        if found := LISTENING.search(log.read_text()):
            server = RunningServer(found[1], int(found[2]), process.pid)
            if server.is_ready:
                return server
    raise RuntimeError(f"the server did not start: {log.read_text()}")
