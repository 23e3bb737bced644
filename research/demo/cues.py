"""Tasks with checkable answers, made out of passages and openly licensed task sets.

A soft prompt can steer a model that has learned to read a text and answer about it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from research.demo.corpus import Document, speak_plainly
from research.demo.cue_layout import Cue, Example, lay_out
from research.demo.headings import heading_of
from research.demo.languages import read_messages
from research.demo.messages import MessageCues
from research.demo.spans import TYPE_TO_PATTERN, names_of, sentences_of, words_of
from research.demo.spoken import RequestCues
from research.demo.tone import REVIEWS, ToneCues

Group = TypeVar("Group")
NUM_TONE_SENTENCES = 120_000
ARTICLE_CLASSES = (
    "footballer politician actor actress singer writer novelist poet painter journalist lawyer player coach film "
    "album song single band novel book series episode village town city district river mountain lake island company "
    "school university church museum station building bridge ship aircraft species genus moth beetle plant disease "
    "election season tournament competition battle festival magazine newspaper game railway road hospital bishop "
    "general judge scientist physicist historian engineer businessman stadium award party team club language dish"
)


class CueWriter:
    """Writes endless documents with cues; `write` is deterministic in the seed and the order of calls.

    Args:
        task_folder: of the openly licensed sets; without it, those and the lexicons and translations of other packages
            are left out.
    """

    def __init__(self, passages: dict[str, list[Document]], task_folder: Path | None, seed: int) -> None:
        self._rng = random.Random(seed)
        self._passages = passages
        self._parts = [part for part in passages if part not in {"russian novel", "miscellany"}]
        self._by_class = _by_article_class(passages["encyclopedia"])
        self._novels = _group(passages["novel"], "author")
        self._decades = _group(passages["novel"], "decade")
        self._sets = {name: _task_rows(task_folder, name) for name in ("banking77", "snips_slots", "e2e_nlg")}
        self._intents = _group(
            [Document("request", text, title=intent) for text, intent in self._sets["banking77"]], "title"
        )
        self._messages = MessageCues(self._by_class, self._sentence, self._rng)
        self._requests = RequestCues(self._rng)
        self._makers = self._weighted_makers()
        if task_folder is not None:
            self._makers += self._makers_of_packages_and_sets()

    def write(self) -> str:
        """One group of documents on one task, with `<s>` and `</s>` written out."""
        maker = self._rng.choices([m for m, _ in self._makers], [w for _, w in self._makers])[0]
        return lay_out(maker(), self._rng)

    def _weighted_makers(self) -> list[tuple[Callable[[], Cue], float]]:
        return [
            (self._part, 0.3),
            (self._author, 0.1),
            (self._decade, 0.1),
            (self._article_class, 2.0),
            (self._title, 1.0),
            (self._subject, 0.3),
            (self._heading, 3.5),
            (self._names, 1.0),
            (self._typed_names, 1.0),
            (self._messages.entities, 6.0),
            (self._requests.topic, 4.0),
            (self._requests.action, 2.5),
            (self._occurs, 0.1),
            (self._word_at, 0.1),
            (self._copy, 0.5),
            (self._cloze, 0.1),
            (self._is_question, 0.1),
            (self._is_speech, 0.1),
            (self._is_continued, 0.1),
        ]

    def _makers_of_packages_and_sets(self) -> list[tuple[Callable[[], Cue], float]]:
        tone = ToneCues(self._sentences_with_tone(), self._rng)
        self._language_to_messages = read_messages()
        return [
            (tone.word, 4.0),
            (tone.sentiment, 11.0),
            (tone.three_way, 0.3),
            (tone.opinion, 2.0),
            (self._language, 3.0),
            (self._banking, 2.5),
            (self._snips, 1.0),
            (self._e2e, 0.1),
            (self._e2e_reversed, 0.1),
        ]

    def _sentences_with_tone(self) -> list[str]:
        """Every sentence of the modern parts that speaks of a work, and some of all the others."""
        passages = [p for part in ("encyclopedia", "news", "miscellany") for p in self._passages[part]]
        of_works = {s[:300] for passage in passages for s in sentences_of(passage.text) if REVIEWS.search(s)}
        return sorted(of_works) + [self._sentence() for _ in range(NUM_TONE_SENTENCES)]

    # Tasks

    def _part(self) -> Cue:
        parts = self._rng.sample(self._parts, self._rng.randint(2, len(self._parts)))
        return self._labelled(("source", "genre", "kind of text"), {p: self._passages[p] for p in parts})

    def _author(self) -> Cue:
        return self._labelled(("author", "who wrote this", "writer"), self._some(self._novels, 4))

    def _decade(self) -> Cue:
        return self._labelled(("decade", "when was this written"), self._some(self._decades, 4))

    def _article_class(self) -> Cue:
        groups = self._some(self._by_class, self._rng.choice((2, 3, 4, 8, 30)))
        return self._labelled(("topic", "category", "subject", "domain", "class"), groups)

    def _title(self) -> Cue:
        return Cue(("title of the article", "title", "name of the subject"), self._titled)

    def _titled(self) -> Example:
        document = self._rng.choice(self._passages["encyclopedia"])
        return self._clip(document.text), document.title

    def _subject(self) -> Cue:
        def draw() -> Example:
            while True:
                text = self._clip(self._rng.choice(self._passages["encyclopedia"]).text)
                found = re.search(
                    r" (?:is|was|are|were) (?:an?|the) ([a-zA-Z -]{4,50}?)(?: who| in| of| for| from|[.,])", text
                )
                if found:
                    return text, found[1]

        return Cue(("what is it", "description", "definition"), draw)

    def _heading(self) -> Cue:
        def draw() -> Example:
            while True:
                document = self._rng.choice(self._passages[self._rng.choice(("news", "news", "news", "encyclopedia"))])
                heading = heading_of(document.text)
                if heading:
                    num_sentences = self._rng.randint(1, 4)
                    return " ".join(sentences_of(document.text)[:num_sentences])[:600].strip(), heading

        names = ("headline", "headline of the news article", "short summary", "title in a few words", "heading")
        return Cue(names, draw, asks=("Headline", "Headline", "Heading", "Title", "Summary", "In short"))

    def _language(self) -> Cue:
        messages = self._some(self._language_to_messages, self._rng.choice((2, 3, 8, 12, 21)))

        def draw() -> Example:
            language = self._rng.choice(list(messages))
            return self._rng.choice(messages[language])[:300], language

        names = ("language", "language of the text", "name of the language", "in which language is this written")
        return Cue(names, draw, tuple(messages), asks=("Language",))

    def _names(self) -> Cue:
        key = self._rng.choice(("names", "name", "entities", "list", ""))
        separator = self._rng.choice(("; ", ", "))

        def draw() -> Example:
            text = self._snippet()
            names = names_of(text)[:6]
            if not names:
                return text, "none"
            if key == "name":
                return text, separator.join(f"name = {name}" for name in names)
            return text, (f"{key} = " if key else "") + separator.join(names)

        return Cue(("names in the text", "list the names", "extract the entities", "proper names"), draw)

    def _typed_names(self) -> Cue:
        """Pairs `type = words` in the order of the text, types told by the form of the words."""
        types = self._rng.sample(sorted(TYPE_TO_PATTERN), self._rng.randint(1, 3))
        types.sort()
        pattern = re.compile("|".join(f"(?P<{t}>{TYPE_TO_PATTERN[t]})" for t in types))

        def draw() -> Example:
            text = self._snippet()
            found = [(match.lastgroup, match[0]) for match in pattern.finditer(text)][:6]
            return text, "; ".join(f"{kind} = {words}" for kind, words in found) or "none"

        return Cue((f"find {', '.join(types)}", f"{' and '.join(types)} in the text"), draw)

    def _occurs(self) -> Cue:
        word = self._rng.choice(words_of(self._snippet()) or ["time"])
        yes, no = self._rng.choice((("yes", "no"), ("true", "false"), ("present", "absent")))

        def draw() -> Example:
            text = self._snippet()
            asked = self._rng.choice(words_of(text) or [word])
            if self._rng.random() < 0.5:
                asked = self._rng.choice(words_of(self._snippet()) or [word])
            return f"{text}\n{asked}", yes if asked in words_of(text) else no

        return Cue(("does the word occur in the text", "is the last word in the text above"), draw)

    def _word_at(self) -> Cue:
        place = self._rng.choice(("first", "last", "second", "longest"))

        def draw() -> Example:
            text = self._snippet()
            words = words_of(text) or ["none", "none"]
            if place == "longest":
                return text, max(words, key=len)
            return text, words[min({"first": 0, "last": len(words) - 1, "second": 1}[place], len(words) - 1)]

        return Cue((f"{place} word", f"the {place} word of the text"), draw)

    def _copy(self) -> Cue:
        change = self._rng.choice((str, str.lower, str.upper, speak_plainly))

        def draw() -> Example:
            text = self._sentence()[:200]
            return text, change(text)

        name = {str: "repeat", str.lower: "lower case", str.upper: "capitals"}.get(change, "plain")
        return Cue((name, f"{name} the text"), draw)

    def _cloze(self) -> Cue:
        def draw() -> Example:
            text = self._snippet()
            word = self._rng.choice([w for w in words_of(text) if len(w) > 3] or ["the"])
            return re.sub(rf"\b{re.escape(word)}\b", "___", text, count=1), word

        return Cue(("missing word", "fill in the blank", "the word left out"), draw)

    def _is_question(self) -> Cue:
        return self._two_way(
            ("question or statement", "type of sentence"),
            ("question", "statement"),
            lambda s: s.endswith("?"),
            lambda s: s.rstrip('?.!"” '),
        )

    def _is_speech(self) -> Cue:
        return self._two_way(
            ("speech or narration", "is someone speaking"),
            ("speech", "narration"),
            lambda s: bool(re.match(r"[\"“']", s)),
            lambda s: s.strip("\"“”' "),
        )

    def _is_continued(self) -> Cue:
        def draw() -> Example:
            sentences = sentences_of(self._passage().text)
            if len(sentences) < 3:
                return draw()
            at = self._rng.randrange(len(sentences) - 1)
            is_true = self._rng.random() < 0.5
            following = sentences[at + 1] if is_true else self._sentence()
            return f"{sentences[at]}\n{following}"[:500], "yes" if is_true else "no"

        return Cue(("does the second sentence follow the first", "coherent"), draw, ("yes", "no"))

    def _banking(self) -> Cue:
        groups = self._some(self._intents, self._rng.choice((2, 3, 5, 77, 77)))
        return self._labelled(("intent", "customer intent", "what does the customer want"), groups)

    def _snips(self) -> Cue:
        return Cue(
            ("slots", "slots in the request", "extract the slots"), lambda: self._rng.choice(self._sets["snips_slots"])
        )

    def _e2e(self) -> Cue:
        return Cue(("describe the restaurant", "description"), lambda: self._rng.choice(self._sets["e2e_nlg"]))

    def _e2e_reversed(self) -> Cue:
        def draw() -> Example:
            meaning, sentence = self._rng.choice(self._sets["e2e_nlg"])
            return sentence, "; ".join(
                f"{key} = {value}" for key, value in re.findall(r"(\w[^,\[]*)\[([^\]]*)\]", meaning)
            )

        return Cue(("facts", "facts about the restaurant"), draw)

    # Examples

    def _labelled(self, names: tuple[str, ...], label_to_documents: dict[str, list[Document]]) -> Cue:
        labels = list(label_to_documents)

        def draw() -> Example:
            label = self._rng.choice(labels)
            return self._clip(self._rng.choice(label_to_documents[label]).text), label

        return Cue(names, draw, tuple(labels))

    def _two_way(
        self, names: tuple[str, ...], labels: tuple[str, str], test: Callable[[str], bool], strip: Callable[[str], str]
    ) -> Cue:
        def draw() -> Example:
            wanted = self._rng.random() < 0.5
            for _ in range(40):
                sentence = self._sentence()
                if test(sentence) == wanted:
                    return strip(sentence), labels[0] if wanted else labels[1]
            return strip(sentence), labels[0] if test(sentence) else labels[1]

        return Cue(names, draw, labels)

    def _clip(self, text: str) -> str:
        """One to four sentences from the front of a text, at most 500 characters, sometimes in plain lower case."""
        clip = " ".join(sentences_of(text)[: self._rng.randint(1, 4)])[:500].strip() or text[:200]
        return speak_plainly(clip) if self._rng.random() < 0.25 else clip

    def _passage(self) -> Document:
        parts = ("novel", "encyclopedia", "encyclopedia", "news", "news", "miscellany", "speech", "play")
        return self._rng.choice(self._passages[self._rng.choice(parts)])

    def _snippet(self) -> str:
        """One to three sentences from anywhere in a passage, at most 400 characters."""
        sentences = sentences_of(self._passage().text)
        at = self._rng.randrange(len(sentences))
        return " ".join(sentences[at : at + self._rng.randint(1, 3)])[:400].strip() or "None."

    def _sentence(self) -> str:
        return self._rng.choice(sentences_of(self._passage().text))[:300].strip() or "None."

    def _some(self, groups: dict[str, Group], num: int) -> dict[str, Group]:
        keys = self._rng.sample(sorted(groups), min(num, len(groups)))
        return {key: groups[key] for key in keys}


def _group(documents: list[Document], field: str) -> dict[str, list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(getattr(document, field), []).append(document)
    return {key: group for key, group in groups.items() if key}


def _by_article_class(documents: list[Document]) -> dict[str, list[Document]]:
    """Groups articles by the noun in their opening definition ("is an American politician")."""
    pattern = re.compile(
        r"^[^.]{3,120}? (?:is|was|are|were) (?:an?|the|one of the) [^.,]*?\b("
        + ARTICLE_CLASSES.replace(" ", "|")
        + r")s?\b"
    )
    groups: dict[str, list[Document]] = {}
    for document in documents:
        found = pattern.match(document.text)
        if found:
            rest = " ".join(sentences_of(document.text)[1:])
            groups.setdefault(found[1], []).append(document)
            if len(rest) > 100:
                groups[found[1]].append(Document(document.part, rest, document.title))
    return {key: group for key, group in groups.items() if len(group) >= 8}


def _task_rows(task_folder: Path | None, name: str) -> list[Example]:
    if task_folder is None:
        return []
    lines = (task_folder / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["input"], row["target"]) for row in map(json.loads, lines)]
