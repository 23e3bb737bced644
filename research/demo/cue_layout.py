"""How a task and its examples become training text: cues, instructions, renamed labels, four layouts.

A soft prompt can steer a model that has learned to read a text and answer about it. Four layouts teach that: the
examples of one document, one example per document in a run of documents, an instruction within the document, and an
instruction or examples before `<s>`, where a soft prompt will be.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BOS, EOS = "<s>", "</s>"
ANSWER_OPENS, ANSWER_ENDS = "\x02", "\x03"
"""Stand around every answer until the text is encoded; see `split_answers`."""
RENAMED_SHARE = 0.1
USUAL_SHARE = 0.5
Example = tuple[str, str]
Draw = Callable[[], Example]

CUES = (
    ("Text: ", "\nAnswer:", " "),
    ("Input: ", "\nOutput:", " "),
    ("", "\nAnswer:", " "),
    ("", "\nOutput:", " "),
    ("", "\nLabel:", " "),
    ("", "\n=>", " "),
    ("", " =>", " "),
    ("", " ->", " "),
    ("", "\n", ""),
    ("", "\n\n", ""),
    ("", " |", " "),
    ("", ":", " "),
    ("Q: ", "\nA:", " "),
    ("User: ", "\nAssistant:", " "),
    ("Sentence: ", "\nClass:", " "),
    ('"', '"\n', ""),
    ("Passage: ", "\nResult:", " "),
)
"""What stands before the text, between text and answer, and the space that opens the answer. The first is usual:
it stands in USUAL_SHARE of the groups, so that a small model knows one place to answer at well.
"""

FREE_LABELS = (
    "positive negative neutral good bad true false yes no A B C D E 1 2 3 4 5 first second third red blue green black "
    "white alpha beta gamma delta north south east west objective subjective personal formal fact opinion home work "
    "travel money food sport music film book science other none person place group question statement high low left "
    "right"
)


LAYOUTS = ("run", "before", "before", "before", "before", "one document", "instructed")


@dataclass(frozen=True)
class Cue:
    """A task: ways to say it, and a source of examples.

    Attributes:
        labels: empty if the answers are open.
        asks: words of its own that may stand between a text and its answer ("Headline").
        is_short: its texts are single words, of which one document holds many.
    """

    names: tuple[str, ...]
    draw: Draw
    labels: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    is_short: bool = False


def lay_out(cue: Cue, rng: random.Random) -> str:
    """Examples of one task in one of the four layouts, with `<s>` and `</s>` written out."""
    before, between, space = CUES[0] if rng.random() < USUAL_SHARE else rng.choice(CUES)
    if cue.asks and rng.random() < 0.25:
        before, between, space = "", f"\n{rng.choice(cue.asks)}:", " "
    rename = _renaming(cue, rng)
    is_renamed = any(old != new for old, new in rename.items())
    num = rng.randint(4, 8) if is_renamed or cue.is_short else rng.choice((1, 1, 1, 2, 3))
    shots = []
    for text, answer in (cue.draw() for _ in range(num)):
        answered = f"{ANSWER_OPENS}{space}{rename.get(answer, answer)}{ANSWER_ENDS}"
        shots.append(f"{before}{text}{between}{answered}")
    name = _instruction(cue, rename, rng)
    layout = rng.choice(LAYOUTS)
    if layout == "run":
        return "".join(f"{BOS}{shot}{EOS}" for shot in shots)
    if layout == "before":
        head = "\n\n".join([name, *shots[:-1]]) if rng.random() < 0.3 else name
        tail = shots[-1:] if len(head) > len(name) else shots
        return "".join(f"{head}{BOS}{shot}{EOS}" for shot in tail)
    if layout == "one document":
        gap = rng.choice(("\n\n", "\n\n", "\n"))
        return f"{BOS}{gap.join(shots)}{EOS}"
    gap = rng.choice(("\n", "\n\n"))
    return "".join(f"{BOS}{name}{gap}{shot}{EOS}" for shot in shots)


def split_answers(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks, and where its answers are: first character, character after the last."""
    clean, spans = "", []
    for piece in text.split(ANSWER_OPENS):
        answer, marked, rest = piece.partition(ANSWER_ENDS)
        if marked:
            spans.append((len(clean), len(clean) + len(answer)))
        clean += answer + rest
    return clean, spans


def _instruction(cue: Cue, rename: dict[str, str], rng: random.Random) -> str:
    name = rng.choice(cue.names)
    name = rng.choice((name, name.capitalize() + ".", f"Task: {name}", f"{name.capitalize()}:"))
    if cue.labels and len(cue.labels) <= 10 and rng.random() < 0.6:
        name += rng.choice((" ", "\nLabels: ", " Choose from ")) + ", ".join(rename[label] for label in cue.labels)
    return name


def _renaming(cue: Cue, rng: random.Random) -> dict[str, str]:
    """New names for the labels of some few-class tasks; they hold for one group of documents."""
    if not 2 <= len(cue.labels) <= 5 or rng.random() >= RENAMED_SHARE:
        return {label: label for label in cue.labels}
    return dict(zip(cue.labels, rng.sample(FREE_LABELS.split(), len(cue.labels)), strict=True))
