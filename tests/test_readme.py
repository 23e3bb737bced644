"""The tuning section of docs/tuning.md runs as printed, against a server as the README starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import LiveServer, make_settings, run_server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tuning.md").read_text()
SECTION = re.search(r"^## Through the API\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)[1]
CONSOLE = "\n".join(re.findall(r"^```console\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL))
PYTHON = re.search(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo backbone, with a registry of its own."""
    from app.main import load_backbone

    settings = make_settings(tmp_path_factory.mktemp("prompts"))
    with run_server(settings, load_backbone(settings)) as server:
        yield server


@pytest.fixture(scope="module")
def said(demo: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the console lines print, and the folder they ran in."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "softswap").write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
    (folder / "softswap").chmod(0o755)
    script = re.sub(r"^\$ ", "", CONSOLE, flags=re.MULTILINE).replace("localhost:8000", demo.url)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SOFTSWAP_URL": demo.url,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_task_is_learned_with_curl_and_its_second_checkpoint_called(said: tuple[str, Path], demo: LiveServer) -> None:
    output, _ = said
    [job] = demo.services.require_tuning().jobs.page(None, 10)[0]
    assert job.status == "succeeded"
    assert output.count("data: [DONE]") == 1
    answers = [json.loads(answer) for answer in re.findall(r'\{"model":.*?\}\}\}', output)]
    checkpoints = demo.services.require_tuning().checkpoints.of(job.id)
    assert [answer["model"] for answer in answers] == [job.version, checkpoints[1].version]
    assert {answer["label"] for answer in answers} <= {"English", "French", "German"}
    assert f"{job.id} " in output
    assert f"fine_tuned_model: {job.version}" in output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_with_the_openai_package(said: tuple[str, Path], demo: LiveServer) -> None:
    _, folder = said
    done = subprocess.run(
        [sys.executable, "-c", PYTHON.replace("http://localhost:8000", demo.url)],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "The job has successfully completed: inbox@" in done.stdout
    assert len(re.findall(r"choice='(?:English|French|German)'", done.stdout)) == 2
