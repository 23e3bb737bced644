"""Spans of a text that can be told by their form (words, sentences, names, typed entities), and written phrases."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

NAME = r"[A-Z][\w'’-]+(?: (?:of |the |de |van |von )?[A-Z][\w'’-]+)*"
MONTHS = "January|February|March|April|June|July|August|September|October|November|December"
SOCIETIES = "Party|Company|Club|League|University|College|Association|Council|Army|Committee"
TYPE_TO_PATTERN = {
    "year": r"\b1[5-9]\d\d\b|\b20[0-2]\d\b",
    "date": rf"\b(?:{MONTHS})(?: \d{{1,2}})?\b",
    "number": r"\b\d[\d,.]*\d\b|\b\d\b",
    "person": r"\b(?:Mr|Mrs|Miss|Sir|Lady|Lord|Dr|President|Prince|Captain|Senator)\.? [A-Z]\w+(?: [A-Z]\w+)?",
    "location": r"(?<=\bin )[A-Z]\w+(?: [A-Z]\w+)*|(?<=\bat )[A-Z]\w+(?: [A-Z]\w+)*",
    "group": rf"\b(?:[A-Z]\w+ )+(?:{SOCIETIES})\b|\b[A-Z]{{2,6}}\b",
}
"""`May` is no month here: it is mostly a verb."""


def names_of(text: str) -> list[str]:
    """Capitalized runs that do not open a sentence, in order, each once."""
    found = re.finditer(rf"(?<=[a-z,;:(\"“] ){NAME}", text)
    return list(dict.fromkeys(match[0] for match in found if match[0] not in {"I", "I'm", "I'll", "I've"}))


def sentences_of(text: str) -> list[str]:
    """Sentences and lines of more than eight characters; never empty."""
    parts = re.split(r"(?<=[.!?])[\"”’']?\s+(?=[A-Z\"“'‘])|\n+", text)
    return [part.strip() for part in parts if part and len(part.strip()) > 8] or [text[:200] or "None."]


def words_of(text: str) -> list[str]:
    """Runs of letters."""
    return re.findall(r"[^\W\d_]+", text)


def read_phrases(name: str) -> dict[str, Any]:
    """The lists of `phrases/NAME.toml`."""
    return tomllib.loads((Path(__file__).parent / "phrases" / f"{name}.toml").read_text(encoding="utf-8"))
