"""The `softswap` command, called in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from app.cli.entry import app
from app.errors import SoftswapError


def call(*arguments: str, stdin: str | None = None, code: int = 0) -> str:
    """What it printed, or the message of its error. Args: code: the exit code that it must have."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    if isinstance(result.exception, SoftswapError):
        assert code == 1, result.exception.message
        return result.exception.message
    assert result.exit_code == code, result.output
    return result.output


def call_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], check=False, capture_output=True, text=True, timeout=120
    )
