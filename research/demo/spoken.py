"""Spoken requests to an assistant, made of written patterns and word lists; topic and action as classes."""

from __future__ import annotations

import random
import re

from research.demo.cue_layout import Cue, Example
from research.demo.spans import read_phrases


class RequestCues:
    """Tasks about what a request is about, and what its speaker wants."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._phrases = read_phrases("requests")
        self._topics: dict[str, dict[str, list[str]]] = self._phrases["topics"]

    def topic(self) -> Cue:
        """Which of a few topics, or none of them."""
        topics = self._rng.sample(sorted(self._topics), self._rng.choice((3, 5, 8, 11, 12)))
        others = sorted(set(self._topics) - set(topics))
        stray = self._rng.choice(("none", "other", "out of scope", "unknown")) if others else ""

        def draw() -> Example:
            is_stray = bool(stray) and self._rng.random() < 0.12
            topic = self._rng.choice(others if is_stray else topics)
            action = self._rng.choice(sorted(self._topics[topic]))
            return self._request(topic, action), stray if is_stray else topic

        return Cue(
            ("topic", "domain", "domain of the request", "what is the request about"),
            draw,
            tuple(topics),
            asks=("Topic", "Domain"),
        )

    def action(self) -> Cue:
        """What the speaker wants, out of all actions or those of a few topics."""
        topics = self._rng.sample(sorted(self._topics), self._rng.choice((2, 4, 12, 12)))
        pairs = [(topic, action) for topic in topics for action in sorted(self._topics[topic])]

        def draw() -> Example:
            topic, action = self._rng.choice(pairs)
            return self._request(topic, action), action

        return Cue(
            ("intent", "intent of the request", "what does the speaker want"),
            draw,
            tuple(a for _, a in pairs),
            asks=("Intent",),
        )

    def _request(self, topic: str, action: str) -> str:
        pattern = self._rng.choice(self._topics[topic][action])
        text = re.sub(r"\{(\w+)\}", lambda slot: self._rng.choice(self._phrases["words"][slot[1]]), pattern)
        return self._rng.choice(self._phrases["openers"]) + text + self._rng.choice(self._phrases["endings"])
