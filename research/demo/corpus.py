"""Documents of the public-domain and openly licensed English corpora, cleaned and cut to passages."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADLINE_KEY_CHARS = 60
MAX_PASSAGE_CHARS = 2400
PART_TO_BYTES = {
    "novel": 14_000_000,
    "encyclopedia": 30_000_000,
    "news": 22_000_000,
    "miscellany": 3_000_000,
    "speech": 3_000_000,
    "russian novel": 3_300_000,
    "play": 1_200_000,
}
"""How many UTF-8 bytes of each part go into the text stream (a whole part where it is smaller)."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus; `title`, `author` and `decade` are empty if the source states none."""

    part: str
    text: str
    title: str = ""
    author: str = ""
    decade: str = ""


def read_corpora(folder: Path, headline_task: Path | None) -> dict[str, list[Document]]:
    """Reads every part of the `corpora` folder, in file order, without the held-out headline articles."""
    held_out = headline_keys(headline_task) if headline_task else frozenset()
    return {
        "novel": list(_novels(folder / "eltec_eng" / "eltec_eng_chapters.jsonl.gz")),
        "encyclopedia": list(_encyclopedia(folder / "enwiki_sample" / "enwiki_sample.jsonl.gz")),
        "news": list(_news(folder / "wikinews_en" / "wikinews_en.jsonl.gz", held_out)),
        "miscellany": list(_plain_rows("miscellany", folder / "nltk_masc" / "masc.jsonl.gz")),
        "speech": [
            *_plain_rows("speech", folder / "nltk_inaugural" / "inaugural.jsonl.gz"),
            *_plain_rows("speech", folder / "nltk_state_union" / "state_union.jsonl.gz"),
        ],
        "russian novel": list(_war_and_peace(folder / "war_and_peace" / "war-and-peace.txt.gz")),
        "play": [Document("play", _read(folder / "tinyshakespeare" / "tinyshakespeare.txt.gz"))],
    }


def passages(documents: list[Document], max_bytes: int, rng: random.Random) -> list[Document]:
    """Cuts documents at paragraph ends to passages of a few hundred tokens; at most `max_bytes`, chosen at random."""
    pieces = [piece for document in documents for piece in _cut(document, rng)]
    rng.shuffle(pieces)
    chosen, total = [], 0
    for piece in pieces:
        total += len(piece.text.encode())
        if total > max_bytes:
            break
        chosen.append(piece)
    return chosen


def headline_keys(task_folder: Path) -> frozenset[str]:
    """The keys of the articles and the headlines of the task's validation and test split."""
    keys = set()
    for split in ("validation", "test"):
        for line in (task_folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            keys |= {_key(row["input"]), _key(row["target"])}
    return frozenset(keys)


def is_held_out(title: str, text: str, keys: frozenset[str]) -> bool:
    """Whether an article opens like a held-out one, or carries its headline."""
    return _key(text) in keys or _key(title) in keys


def speak_plainly(text: str) -> str:
    """Lower case with spaces around punctuation, as tokenized review and dialogue sets are written."""
    return re.sub(r"\s*([.,!?;:()\"])\s*", r" \1 ", text.lower()).strip()


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())[:HEADLINE_KEY_CHARS]


def _read(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _novels(path: Path) -> Iterator[Document]:
    for row in _rows(path):
        year = re.search(r"ENG(\d{3})", row["source"])
        author = row["author"].split(",")[0].strip()
        yield Document("novel", row["text"], row["title"].strip(), author, f"{year[1]}0s" if year else "")


def _encyclopedia(path: Path) -> Iterator[Document]:
    for row in _rows(path):
        text = re.sub(r" \([\s,;]*\)", "", row["text"]).replace("\n", "\n\n")
        yield Document("encyclopedia", text, re.sub(r" \(.*\)$", "", row["title"]))


def _news(path: Path, held_out: frozenset[str]) -> Iterator[Document]:
    for row in _rows(path):
        if row["holes"] == 0 and not is_held_out(row["title"], row["text"], held_out):
            yield Document("news", row["text"].replace("\n", "\n\n"))


def _plain_rows(part: str, path: Path) -> Iterator[Document]:
    for row in _rows(path):
        if not row["id"].endswith("categories.txt"):
            yield Document(part, row["text"])


def _war_and_peace(path: Path) -> Iterator[Document]:
    paragraphs = _read(path).split("\n\n")
    yield Document("russian novel", "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _cut(document: Document, rng: random.Random) -> Iterator[Document]:
    make: Callable[[str], Document] = lambda text: Document(  # noqa: E731
        document.part, text, document.title, document.author, document.decade
    )
    buffer, limit = "", rng.randint(300, MAX_PASSAGE_CHARS)
    for paragraph in _paragraphs(document.text):
        if buffer and len(buffer) + len(paragraph) > limit:
            yield make(buffer)
            buffer, limit = "", rng.randint(300, MAX_PASSAGE_CHARS)
        buffer = f"{buffer}\n\n{paragraph}" if buffer else paragraph
    if len(buffer) > 40:
        yield make(buffer)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of at most MAX_PASSAGE_CHARS characters; longer ones are cut at sentence ends."""
    for paragraph in re.split(r"\n\s*\n", text):
        rest = paragraph.strip()
        while len(rest) > MAX_PASSAGE_CHARS:
            end = max(rest.rfind(mark, 200, MAX_PASSAGE_CHARS) for mark in (". ", "! ", "? ", "; ", " "))
            end = end if end > 0 else MAX_PASSAGE_CHARS
            yield rest[: end + 1].strip()
            rest = rest[end + 1 :].strip()
        if rest:
            yield rest
