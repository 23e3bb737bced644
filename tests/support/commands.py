"""The `softswap` command, called in this process or in one of its own."""

from __future__ import annotations

import logging
import subprocess
import sys

from typer.testing import CliRunner

from app.cli.entry import app
from app.errors import SoftswapError


def call(*arguments: str, stdin: str | None = None, code: int = 0) -> str:
    """What it printed, or the message of its error. Args: code: the exit code that it must have."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
    finally:  # a command that logs to its own stderr must not write to what the next one prints
        root.handlers[:] = handlers
        root.setLevel(level)
    if isinstance(result.exception, SoftswapError):
        assert code == 1, result.exception.message
        return result.exception.message
    assert result.exit_code == code, result.output
    return result.output


def call_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], check=False, capture_output=True, text=True, timeout=120
    )
