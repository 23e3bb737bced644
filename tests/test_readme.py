"""README.md and docs/tuning.md run as printed, in order, in a fresh clone, against a server as they start it.

Two things are not as printed: the port, which must be free, and the time that tuning may take.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from app.cli.entry import app

ROOT = Path(__file__).parent.parent
MARKER = "== step"
PAGE_TO_NOT_RUN = {
    "README.md": {
        "pip install -e . && softswap serve": "takes the network; the fixture runs `softswap serve`",
        "pip install -e '.[test]' && pytest": "takes the network, and runs this test",
    },
    "docs/tuning.md": {
        "softswap tune docs/messages.csv --input-field text --target-field label --task inbox --budget 3m": "README's",
        "softswap distill inputs.txt --prompt few_shot.txt --labels good,bad --task reviews-short --budget 3m": (
            "reader's files"
        ),
        "pip install -e '.[plot]'": "takes the network",
        "pip install -e '.[compare]'": "takes the network",
        "softswap compare reviews.jsonl --test unseen.jsonl --plot reviews.svg": "takes minutes, reader's files",
    },
}
"""Commands that are printed for people only, and why."""
BUDGET = re.compile(r"(?<=--budget )\w+")
BUDGET_S = "15s"
"""Instead of every printed budget."""


@dataclass(frozen=True)
class Step:
    """A command of a console block, or a whole block of Python."""

    text: str
    is_python: bool

    @property
    def script(self) -> str:
        return f"python3 - <<'END_OF_STEP'\n{self.text}\nEND_OF_STEP" if self.is_python else self.text


def steps_of(page: Path) -> Iterator[Step]:
    for kind, block in re.findall(r"^```(console|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            yield Step(block, True)
            continue
        assert block.startswith("$ "), f"{page.name}: a console block begins with a prompt"
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            yield Step(command.strip(), False)


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """`softswap serve` in the clone, at the port that the environment names."""
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(["softswap", "serve"], cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until_ready(process, f"http://127.0.0.1:{environment['SOFTSWAP_PORT']}/ready")
            yield
        finally:
            process.terminate()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    with httpx.Client() as client:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise TimeoutError(url)


def clone(folder: Path) -> None:
    """What git would check out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what a clone would hold is unknown")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def make_commands(folder: Path, url: str) -> None:
    """`softswap` and `python3` of this environment. Jobs are asked of a server, which would listen at port 8000."""
    folder.mkdir()
    (folder / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "softswap").write_text(
        f'#!/bin/sh\n[ "$1" = jobs ] && export SOFTSWAP_URL={url}\nexec {sys.executable} -m app.cli "$@"\n'
    )
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    for name in ("python3", "softswap"):
        (folder / name).chmod(0o755)


def run_page(page: str, folder: Path) -> dict[str, str]:
    """Step to what it printed. Fails with the step that failed."""
    clone(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    make_commands(folder / "commands", f"http://{address}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOFTSWAP_")} | {
        "PATH": f"{folder / 'commands'}:{os.environ['PATH']}",
        "CURL_HOME": str(folder / "commands"),
        "PYTHONPATH": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "SOFTSWAP_PORT": str(port),
        "SOFTSWAP_MODEL": "demo",  # the default one may have to be pulled, and takes longer
    }
    steps = [step for step in steps_of(folder / page) if step.text not in PAGE_TO_NOT_RUN[page]]
    script = "".join(f"echo '{MARKER}'\n{step.script}\n" for step in steps)
    with serving(folder, environment):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", BUDGET.sub(BUDGET_S, script).replace("localhost:8000", address)],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=550,
        )
    printed = done.stdout.split(f"{MARKER}\n")[1:]
    assert done.returncode == 0, f"{steps[len(printed) - 1].text}\n{printed[-1]}\n{done.stderr}"
    return dict(zip((step.text for step in steps), printed, strict=True))


def printed_by(printed: dict[str, str], words: str) -> str:
    """The output of the one step that has these words."""
    [output] = [output for text, output in printed.items() if words in text]
    return output


@pytest.mark.parametrize("page", PAGE_TO_NOT_RUN)
def test_what_is_not_run_is_printed(page: str) -> None:
    assert set(PAGE_TO_NOT_RUN[page]) <= {step.text for step in steps_of(ROOT / page)}


@pytest.mark.parametrize("page", PAGE_TO_NOT_RUN)
def test_printed_commands_and_options_exist(page: str) -> None:
    """Those that are not run too."""
    lines = [line for step in steps_of(ROOT / page) for line in re.findall(r"^(?:.*&& )?softswap (.+)$", step.text)]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)
        command = get_command(app)
        while hasattr(command, "commands") and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readme_runs_as_printed(tmp_path: Path) -> None:
    printed = run_page("README.md", tmp_path)
    assert json.loads(printed_by(printed, "/v1/tasks/sentiment/run"))["label"] in ("negative", "positive")
    assert len(json.loads(printed_by(printed, "/v1/run"))["results"]) == 3
    assert printed_by(printed, "/v1/chat/completions").endswith("data: [DONE]\n\n")
    assert re.fullmatch(r"sentiment@\d+ (negative|positive)\n", printed_by(printed, "import OpenAI"))
    assert printed_by(printed, "softswap run inbox").strip() in ("English", "French", "German")
    assert re.search(r"^inbox +1 ", printed_by(printed, "softswap tasks ls"), re.MULTILINE)
    assert "accuracy" in printed_by(printed, "softswap eval")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_on_tuning_runs_as_printed(tmp_path: Path) -> None:
    printed = run_page("docs/tuning.md", tmp_path)
    assert printed_by(printed, "curl -sN").count("data: [DONE]") == 1
    answers = [json.loads(printed_by(printed, words)) for words in ("/v1/tasks/inbox/run", "/v1/tasks/$checkpoint")]
    assert len({answer["model"] for answer in answers}) == 2
    assert {answer["label"] for answer in answers} <= {"English", "French", "German"}
    by_sdk = printed_by(printed, "import OpenAI")
    assert "The job has successfully completed: inbox@" in by_sdk
    assert len(re.findall(r"choice='(?:English|French|German)'", by_sdk)) == 2
    assert "fine_tuned_model: inbox@" in printed_by(printed, "softswap jobs show last")
