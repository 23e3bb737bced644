"""Names and prose keep to the glossary of docs/architecture.md; no class name is used twice; folders stay small."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = [
    path
    for folder in ("app", "benchmarks", "research", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

PHRASES = re.compile(r"(?<![a-z])(nobody|so[\s#_]+many|goes[\s#_]+on|shall)(?![a-z])", re.IGNORECASE)
"""Matches across the end of a line, of a comment too, and within snake_case."""
NAME_PARTS = {"workshop", "bell", "happening", "happenings", "lesson", "lessons", "judgement", "answerer", "answerers"}
NAMES = {"Begun", "begun", "Descent", "descent", "JobBook", "FileBook", "CheckpointBook", "LabelBook"}
CLASS_NAMES = {"Bench", "Edge", "Intake", "Mark", "Recorder"}
METHOD_NAMES = {"hear", "tell"}
BAG_NAMES = {"utils", "helpers", "common", "misc"}
MAX_FILES = 12
EXEMPT: dict[str, str] = {}
"""Path to why its words are not ours."""


def read(path: Path) -> str:
    return "" if name_of(path) in EXEMPT else path.read_text()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def identifiers(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(read(path)).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def parts_of(identifier: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def definitions(path: Path, kinds: type | tuple[type, ...]) -> Iterator[str]:
    return (node.name for node in ast.walk(ast.parse(read(path))) if isinstance(node, kinds))


def test_prose_and_names_avoid_some_phrases() -> None:
    found = []
    for path in [*CODE, *PAGES]:
        text = read(path)
        found += [
            f"{name_of(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
            for match in PHRASES.finditer(text)
        ]
    assert not found, "\n".join(found)


def test_names_avoid_private_words() -> None:
    found = [
        f"{name_of(path)}:{line}: {name}"
        for path in CODE
        for line, name in identifiers(path)
        if name in NAMES or parts_of(name) & NAME_PARTS
    ]
    for path in CODE:
        found += [f"{name_of(path)}: class {name}" for name in definitions(path, ast.ClassDef) if name in CLASS_NAMES]
        if path.is_relative_to(ROOT / "app"):
            functions = definitions(path, (ast.FunctionDef, ast.AsyncFunctionDef))
            found += [f"{name_of(path)}: def {name}" for name in functions if name in METHOD_NAMES]
    assert not found, "\n".join(found)


def test_no_class_name_is_defined_twice() -> None:
    name_to_files: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "app").rglob("*.py"):
        for name in definitions(path, ast.ClassDef):
            name_to_files[name].append(name_of(path))
    twice = {name: sorted(files) for name, files in name_to_files.items() if len(files) > 1}
    assert not twice, twice


def test_no_folder_holds_more_than_twelve_files() -> None:
    files = (path for path in (ROOT / "app").rglob("*") if path.suffix in {".py", ".c", ".h"})
    counts = Counter(name_of(path.parent) for path in files if path.name != "__init__.py")
    large = {folder: count for folder, count in counts.items() if count > MAX_FILES}
    assert not large, large


@pytest.mark.parametrize("folder", ["app", "benchmarks", "research", "tests"])
def test_no_file_is_a_bag(folder: str) -> None:
    assert [name_of(path) for path in (ROOT / folder).rglob("*") if path.stem in BAG_NAMES] == []
