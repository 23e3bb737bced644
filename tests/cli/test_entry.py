"""The `softswap` command as a whole: help, exit codes, errors, pipes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.commands import call, call_process
from tests.support.server import LiveServer


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys, runpy, resource; sys.argv = ['softswap', '--help']\n"
        "try: runpy.run_module('app.cli', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'httpx', 'numpy'} & set(sys.modules)\n"
        "print(heavy or '', resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    *heavy, seconds = done.stderr.split()
    assert heavy == []
    assert float(seconds) < 2.0  # 0.3 alone; much of the margin is for a crowded machine
    for name in ("serve", "run", "tune", "distill", "compare", "eval", "tasks", "jobs", "doctor", "models", "pull"):
        assert name in done.stdout


def test_every_command_explains_itself() -> None:
    groups = [
        *("serve", "run", "tune", "distill", "compare", "eval", "doctor", "models", "pull", "tasks"),
        *(f"tasks {name}" for name in ("ls", "show", "add", "rm", "alias")),
        *(f"jobs {name}" for name in ("ls", "show", "follow", "cancel", "pause", "resume", "rm")),
    ]
    for command in groups:
        lines = call(*command.split(), "--help").splitlines()
        assert len(lines) > 5
        examples = {re.match(" *", line)[0] for line in lines if re.match(r" *(softswap|curl|cat) ", line)}
        assert len(examples) <= 1, f"{command}: examples start at different columns"


def test_a_wrong_call_is_exit_code_2() -> None:
    call("run", code=2)
    call("serve", "--port", "x", code=2)
    call("nonsense", code=2)
    call("tasks", "alias", "a", "live", "x=y", code=2)


def test_an_expected_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    done = call_process("tasks", "ls", "--registry", str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("softswap: there is no registry at")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_stops_reading_is_no_error(live: LiveServer) -> None:
    command = f"yes x | head -300 | {sys.executable} -m app.cli run headline --url {live.url} | head -1"
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
