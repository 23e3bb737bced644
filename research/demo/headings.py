"""Short lines for longer texts, made by leaving words out: the answer is copied from the text."""

from __future__ import annotations

import re

from research.demo.spans import MONTHS, sentences_of

MAX_WORDS = 11
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_WHEN = re.compile(
    rf",? ?\b(?:(?:on|late|early|last|this) )*(?:{DAYS})(?: (?:morning|evening|night|afternoon))?\b,?"
    rf"|,? ?\b(?:on |in )?(?:{MONTHS}|May) \d{{1,2}}(?:, \d{{4}})?,?|,? ?\b(?:today|yesterday|tonight|recently)\b,?"
)
_ASIDE = re.compile(r" ?\([^)]*\)|, (?:who|which|where|whose|aged|a|an|the) [^,]*,|\"")
_SOURCE = re.compile(r"^(?:According to [^,]*,|In [^,]*,|At [^,]*,|After [^,]*,|Following [^,]*,) ?")
_CLAUSE = re.compile(
    r"(?:,| who| which| that is| where| while| when| after| as| because| although| but"
    r"| and (?:has|is|was|will|said))\b.*$"
)
_SMALL = re.compile(r"\b(?:[Tt]he|[Aa]n?|has been|have been|was|were|has|have|had) ")


def heading_of(text: str) -> str:
    """The first sentence in the words of a heading: without dates, asides, articles and what follows the main clause.

    Empty if fewer than three words are left.
    """
    line = _SOURCE.sub("", sentences_of(text)[0])
    line = _ASIDE.sub(" ", _WHEN.sub(" ", line))
    head = " ".join(line.split()[:4])
    line = head + _CLAUSE.sub("", " " + " ".join(line.split()[4:]))
    words = _SMALL.sub("", line + " ").split()[:MAX_WORDS]
    while words and words[-1].lower() in {
        "of",
        "in",
        "to",
        "and",
        "for",
        "with",
        "on",
        "at",
        "by",
        "from",
        "that",
        "its",
    }:
        words.pop()
    heading = " ".join(words).strip(" .,;:-")
    return heading[:1].upper() + heading[1:] if len(words) >= 3 else ""
