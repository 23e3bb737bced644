"""Sentences that are clearly favorable, unfavorable or neither by two lexicons, and short reviews made of words.

The lexicons are dependencies of pre-training alone: `vaderSentiment` (MIT; Hutto and Gilbert 2014) and the adjectives
that `textblob` ships (`en-sentiment.xml`, public domain by its PDDL; De Smedt and Daelemans 2012).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from research.demo.corpus import speak_plainly
from research.demo.cue_layout import Cue, Example
from research.demo.spans import read_phrases

USUAL_PAIR = ("positive", "negative")
LABEL_PAIRS = (
    ("good", "bad"),
    ("favourable", "unfavourable"),
    ("praise", "blame"),
    ("happy", "unhappy"),
    ("like", "dislike"),
    ("great", "terrible"),
    ("pro", "con"),
)
USUAL_SHARE = 0.75
REVIEWS = re.compile(
    r"\b(reviews?|reviewers?|critics?|critical|prais|acclaim|criticis|criticiz|reception|performances?|acting|films?"
    r"|movies?|novels?|albums?|book|story|script|comedy|drama|character)\b"
)


class Tone:
    """The lexicons: tells the tone of a sentence, and writes short reviews."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._phrases = read_phrases("tone")
        vader = load_vader()
        self._score: Any = vader.polarity_scores
        self._polarity, adjectives = load_adjectives()
        words = {word: valence for word, valence in vader.lexicon.items() if word.isalpha() and len(word) > 2}
        self._words = {
            "positive": sorted(word for word, valence in words.items() if valence >= 1.8),
            "negative": sorted(word for word, valence in words.items() if valence <= -1.8),
        }
        self._adjectives = {
            "positive": sorted(a for a in adjectives if self._polarity[a] >= 0.3 and words.get(a, 0.0) >= 0.0),
            "negative": sorted(a for a in adjectives if self._polarity[a] <= -0.25 and words.get(a, 0.0) <= 0.0),
        }

    def of(self, sentence: str) -> str:
        """`positive` or `negative` if both lexicons say so clearly, `neutral` if neither knows a word, or ``."""
        polarities = [
            self._polarity[word] for word in re.findall(r"[a-z]+", sentence.lower()) if word in self._polarity
        ]
        mean = sum(polarities) / max(1, len(polarities))
        if abs(mean) < 0.1 and any(polarities):
            return ""
        compound = self._score(sentence)["compound"]
        if compound == 0 and not any(polarities):
            return "neutral"
        if compound >= 0.4 and mean > 0:
            return "positive"
        return "negative" if compound <= -0.4 and mean < 0 else ""

    def review(self, tone: str) -> str:
        """A made-up sentence of a review, plain and lower case as tokenized review sets are."""
        other = {"positive": "negative", "negative": "positive"}[tone]
        slot_to_words = {
            "{a}": self._adjectives[tone],
            "{b}": self._adjectives[other],
            "{w}": self._words[tone],
            "{p}": self._phrases[tone],
            "{n}": self._phrases["things"],
        }
        shape = self._rng.choice(self._phrases["shapes"])
        return re.sub(r"\{[abwpn]\}", lambda slot: self._rng.choice(slot_to_words[slot[0]]), shape)

    def words(self, tone: str) -> str:
        """One or two words of a tone, sometimes after "very" or before a thing."""
        word = self._rng.choice(self._rng.choice((self._adjectives[tone], self._adjectives[tone], self._words[tone])))
        other = self._rng.choice(self._adjectives[tone])
        thing = self._rng.choice(self._phrases["things"])
        phrase = self._rng.choice(self._phrases[tone])
        return self._rng.choice((word, word, f"{word} , {other}", f"{other} {thing}", f"very {other}", phrase))


class ToneCues:
    """Tasks about the tone of sentences; `sentences` are those of the corpora."""

    def __init__(self, sentences: Iterable[str], rng: random.Random) -> None:
        self._rng = rng
        self._tone = Tone(rng)
        self._pools: dict[tuple[str, bool], list[str]] = {}
        for sentence in sentences:
            key = (self._tone.of(sentence), bool(REVIEWS.search(sentence)))
            self._pools.setdefault(key, []).append(sentence)

    def word(self) -> Cue:
        """Positive or negative, of single words of the lexicons and pairs of them."""
        pair = self._pair()

        def draw() -> Example:
            place = self._rng.randrange(2)
            return self._tone.words(USUAL_PAIR[place]), pair[place]

        return Cue(("sentiment", "tone", "sentiment of the word", f"{pair[0]} or {pair[1]}"), draw, pair, is_short=True)

    def sentiment(self) -> Cue:
        """Positive or negative, under many names."""
        pair = self._pair()
        kind = self._rng.choice(("made", "made", "reviews", "mixed", "mixed"))

        def draw() -> Example:
            place = self._rng.randrange(2)
            return self._example(USUAL_PAIR[place], kind), pair[place]

        subject = self._rng.choice(("", " of the text", " of the review", " of the film review"))
        names = (
            "sentiment" + subject,
            "tone" + subject,
            f"is the text {pair[0]} or {pair[1]}",
            f"{pair[0]} or {pair[1]}",
        )
        return Cue(names, draw, pair, asks=("Sentiment", "Tone"))

    def three_way(self) -> Cue:
        """Positive, negative or neither."""
        labels = ("positive", "negative", "neutral")

        def draw() -> Example:
            label = self._rng.choice(labels)
            return self._example(label, "any" if label == "neutral" else "mixed"), label

        return Cue(("sentiment", "tone", "polarity"), draw, labels)

    def opinion(self) -> Cue:
        """Whether a sentence judges or tells."""
        pair = self._rng.choice((("opinion", "fact"), ("subjective", "objective"), ("review", "story"), ("yes", "no")))

        def draw() -> Example:
            is_opinion = self._rng.random() < 0.5
            tone = self._rng.choice(("positive", "negative")) if is_opinion else "neutral"
            return self._example(tone, "mixed" if is_opinion else "any"), pair[0 if is_opinion else 1]

        return Cue(
            ("opinion or fact", "is this an opinion", "does the writer judge", f"{pair[0]} or {pair[1]}"), draw, pair
        )

    def _pair(self) -> tuple[str, str]:
        return USUAL_PAIR if self._rng.random() < USUAL_SHARE else self._rng.choice(LABEL_PAIRS)

    def _example(self, tone: str, kind: str) -> str:
        """Args: kind: `made` up, from sentences about `reviews`, from `any`, or of all three `mixed`."""
        if kind == "mixed":
            kind = self._rng.choice(("made", "made", "reviews", "any"))
        if kind == "made":
            text = self._tone.review(tone)
            return text if self._rng.random() < 0.9 else f"{text} {self._tone.review(tone)}"
        is_review = kind == "reviews" or self._rng.random() < 0.3
        sentence = self._rng.choice(self._pools.get((tone, is_review)) or self._pools.get((tone, False)) or ["None."])
        return speak_plainly(sentence) if self._rng.random() < 0.6 else sentence


def load_vader() -> Any:
    """VADER's analyzer.

    Raises:
        RuntimeError: `vaderSentiment` is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise RuntimeError("pre-training labels sentences with vaderSentiment: pip install vaderSentiment") from error
    return SentimentIntensityAnalyzer()


def load_adjectives() -> tuple[dict[str, float], set[str]]:
    """Mean polarity (-1 to 1) of every word that textblob's lexicon knows, and which of them are adjectives only.

    Raises:
        RuntimeError: `textblob` is not installed.
    """
    found = find_spec("textblob")
    if found is None or found.origin is None:
        raise RuntimeError("pre-training reads the adjectives that textblob ships: pip install textblob")
    path = Path(found.origin).parent / "en" / "en-sentiment.xml"
    senses: dict[str, list[tuple[float, bool]]] = {}
    for word in ElementTree.parse(path).iter("word"):
        sense = (float(word.attrib["polarity"]), word.attrib["pos"] == "JJ")
        senses.setdefault(word.attrib["form"], []).append(sense)
    polarity = {form: sum(p for p, _ in found) / len(found) for form, found in senses.items()}
    return polarity, {form for form, found in senses.items() if form.isalpha() and all(is_jj for _, is_jj in found)}
