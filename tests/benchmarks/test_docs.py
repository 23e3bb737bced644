"""docs/benchmarks.md and the log name what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS, parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
COMMANDS = re.findall(r"^\$ python -m benchmarks (.+?)(?:\s+#.*)?$", PAGE, flags=re.MULTILINE)
LOG = (ROOT / "research" / "LOG.md").read_text()


def test_the_table_has_every_part() -> None:
    table = PAGE.partition("| part |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, flags=re.MULTILINE) == list(PARTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    assert set(parse(shlex.split(command)).names) <= {*PARTS, "page", "install", "vllm"}


def test_every_experiment_has_its_four_paragraphs_and_is_listed() -> None:
    entries = re.split(r"^## ", LOG, flags=re.MULTILINE)[1:]
    for entry in entries:
        title = entry.splitlines()[0]
        assert re.search(r"\(20\d\d-\d\d-\d\d( to \d\d)?\)$", title), title
        assert all(f"**{word}.**" in entry for word in ("Question", "Method", "Figures", "Verdict")), title
        assert f"* [{title.rpartition(' (')[0]}](#" in LOG


def test_every_file_that_the_log_names_is_there_and_named() -> None:
    names = set(re.findall(r"\]\(results/([^)]+\.json)\)", LOG))
    assert names == {path.name for path in (ROOT / "research" / "results").glob("*.json")}
