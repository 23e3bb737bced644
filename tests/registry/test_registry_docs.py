"""docs/registry.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from app.registry.aliases import AliasTable
from app.registry.formats.peft_checkpoint import PEFT_TYPE_TO_KIND
from app.registry.publication import Publication
from app.registry.registry import Registry
from app.registry.store import FileStore
from app.task_prompt import MAX_VIRTUAL_TOKENS
from tests.support.models import tiny_backbone
from tests.support.prompts import memory_folder, random_prompt

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "registry.md").read_text()


def test_the_files_it_draws_are_those_a_publication_writes() -> None:
    drawing = re.search(r"```\n(.*?)```", TEXT, re.DOTALL)
    assert drawing is not None
    drawn = set(re.findall(r"^ +([a-zA-Z_]+\.[a-z]+) ", drawing[1], re.MULTILINE))
    with memory_folder() as folder:
        prompt = random_prompt(tiny_backbone())
        Registry(FileStore(folder), tiny_backbone()).publish("sentiment", Publication(prompt, initial=prompt.rows))
        written = {path.name for path in folder.rglob("*") if path.is_file()} - {".lock"}
    assert drawn == written


def test_the_checkpoints_it_lists_are_those_that_can_be_imported() -> None:
    paragraph = TEXT[TEXT.index("**What can be imported.**") :].split("\n\n")[0]
    assert set(re.findall(r"`([A-Z_]{3,})`", paragraph)) == set(PEFT_TYPE_TO_KIND)
    assert f"{MAX_VIRTUAL_TOKENS:,} virtual tokens" in paragraph


def test_the_aliases_it_shows_can_be_written_by_hand() -> None:
    example = re.search(r"`(\{\"aliases\".*?\}\})`", TEXT)
    assert example is not None
    table = AliasTable.decode(example[1].encode(), dict.fromkeys((2, 3), "a" * 64))
    assert table.aliases_on("a" * 64) == {"live": 2, "canary": {2: 0.9, 3: 0.1}}


def test_git_keeps_the_bytes_it_says_git_must_keep() -> None:
    assert "prompts/** -text" in (ROOT / ".gitattributes").read_text()
    assert "prompts/.lock" in (ROOT / ".gitignore").read_text()
