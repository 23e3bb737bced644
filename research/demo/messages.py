"""Short messages with names of known type in them, and their lists `type = words; type = words`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

from research.demo.corpus import Document, speak_plainly
from research.demo.cue_layout import Cue, Example
from research.demo.spans import names_of, read_phrases

TYPE_TO_CLASSES = {
    "person": "footballer politician actor actress singer writer novelist poet painter journalist lawyer player coach "
    "bishop general judge scientist physicist historian engineer businessman",
    "location": "village town city district river mountain lake island station bridge stadium road park",
    "group": "band club team party school university",
    "corporation": "company newspaper magazine",
    "product": "ship aircraft game dish language",
    "creative-work": "film album song single novel book series episode",
}
"""The nouns of an article's opening definition that tell the type of its title."""
MAX_NAME_CHARS = 40
NAMINGS: tuple[dict[str, str], ...] = (
    {},
    {},
    {},
    {"creative-work": "title", "corporation": "company", "location": "place"},
    {
        "person": "PER",
        "location": "LOC",
        "group": "ORG",
        "corporation": "ORG",
        "product": "MISC",
        "creative-work": "MISC",
    },
    {"group": "organisation", "corporation": "organisation", "creative-work": "work"},
)
"""Other words for the types; a type that is not there keeps its name."""


class MessageCues:
    """Lists of typed names in messages; the names are titles of encyclopedia articles and a few famous ones."""

    def __init__(
        self, class_to_articles: dict[str, list[Document]], sentence: Callable[[], str], rng: random.Random
    ) -> None:
        self._rng, self._sentence = rng, sentence
        self._names = {
            kind: sorted({title for noun in nouns.split() for title in _short_titles(class_to_articles.get(noun, ()))})
            for kind, nouns in TYPE_TO_CLASSES.items()
        }
        self._phrases = read_phrases("messages")
        self._famous = self._phrases["famous"]
        self._users = [name.split()[-1] for name in self._names["person"]] or ["anna"]

    def entities(self) -> Cue:
        """Typed names in order, or `none`."""
        naming = self._rng.choice(NAMINGS)
        none_share = self._rng.choice((0.2, 0.4, 0.6))

        def draw() -> Example:
            if self._rng.random() < none_share:
                return self._noisy(self._nameless()), "none"
            text, found = self._named()
            return text, "; ".join(f"{naming.get(kind, kind)} = {name}" for kind, name in found)

        types = ", ".join(dict.fromkeys(naming.get(kind, kind) for kind in TYPE_TO_CLASSES))
        return Cue(
            ("entities", "extract the entities", "names in the text", f"find {types}"), draw, asks=("Entities", "Names")
        )

    def _named(self) -> tuple[str, list[tuple[str, str]]]:
        """A message and its (type, name) pairs in order."""
        if self._rng.random() < 0.35:
            return self._renamed_sentence()
        shape = self._noisy(self._rng.choice(self._phrases["shapes"]), fill=False)
        lowered = self._rng.random() < 0.25
        found: list[tuple[str, str]] = []

        def fill(slot: re.Match[str]) -> str:
            if slot[1] not in TYPE_TO_CLASSES:
                return self._filling(slot[1])
            name = self._name(slot[1])
            name = name.lower() if lowered else name
            found.append((slot[1], name))
            return name

        return re.sub(r"\{([a-z-]+)\}", fill, shape), found

    def _renamed_sentence(self) -> tuple[str, list[tuple[str, str]]]:
        """A sentence of the corpora in which one name is another one, whose type is known."""
        for _ in range(20):
            sentence = self._sentence()[:200]
            names = names_of(sentence)
            if len(names) == 1:
                break
        kind = self._rng.choice(("person", "person", "location", "location", "group", "creative-work"))
        name = self._name(kind)
        if not names:
            return f"{name} : {sentence}", [(kind, name)]
        return sentence.replace(names[0], name, 1), [(kind, name)]

    def _nameless(self) -> str:
        if self._rng.random() < 0.5:
            return self._rng.choice(self._phrases["nameless"])
        for _ in range(20):
            sentence = self._sentence()[:160]
            if not re.search(r"(?<!^)[A-Z]", sentence):
                return speak_plainly(sentence) if self._rng.random() < 0.5 else sentence
        return self._rng.choice(self._phrases["nameless"])

    def _noisy(self, text: str, fill: bool = True) -> str:
        """The text between the openers and endings of messages."""
        text = self._rng.choice(self._phrases["openers"]) + text + self._rng.choice(self._phrases["endings"])
        if self._rng.random() < 0.1:
            text = text.capitalize() if fill else text[:1].upper() + text[1:]
        return re.sub(r"\{([a-z-]+)\}", lambda slot: self._filling(slot[1]), text) if fill else text

    def _name(self, kind: str) -> str:
        famous = self._famous.get(kind, ())
        if famous and self._rng.random() < 0.5:
            return self._rng.choice(famous)
        name = self._rng.choice(self._names[kind] or self._famous["location"])
        if kind == "person" and self._rng.random() < 0.4:
            return name.split()[0]
        return name

    def _filling(self, slot: str) -> str:
        letters = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6))
        if slot == "url":
            return self._rng.choice(
                (f"http://bit.ly/{letters}", f"http://t.co/{letters}", f"http://tinyurl.com/{letters}")
            )
        if slot == "tag":
            return self._rng.choice(self._phrases["tags"])
        return self._rng.choice(self._users) + self._rng.choice(("", "", str(self._rng.randrange(100)), "_x"))


def _short_titles(articles: Iterable[Document]) -> list[str]:
    return [article.title for article in articles if 0 < len(article.title) < MAX_NAME_CHARS]
