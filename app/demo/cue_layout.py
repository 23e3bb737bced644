"""How a task and its examples become training text: cues, instructions, renamed labels, four layouts.

A soft prompt can steer a model that has learned to read a text and answer about it. Four layouts teach that: the
examples of one document, one example per document in a run of documents, an instruction within the document, and an
instruction or examples in front of `<s>`, which is where a soft prompt will stand.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BOS, EOS = "<s>", "</s>"
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
"""What stands before the text, between text and answer, and the space that opens the answer."""

FREE_LABELS = (
    "positive negative neutral good bad true false yes no A B C D E 1 2 3 4 5 first second third red blue green black "
    "white alpha beta gamma delta north south east west objective subjective personal formal fact opinion home work "
    "travel money food sport music film book science other none person place group question statement high low left "
    "right"
)


@dataclass(frozen=True)
class Cue:
    """A task: ways to say it, and a source of examples; `labels` is empty where the answers are open."""

    names: tuple[str, ...]
    draw: Draw
    labels: tuple[str, ...] = ()


def lay_out(cue: Cue, rng: random.Random) -> str:
    """Examples of one task in one of the four layouts, with `<s>` and `</s>` written out."""
    before, between, space = rng.choice(CUES)
    rename = _renaming(cue, rng)
    is_renamed = any(old != new for old, new in rename.items())
    num = rng.randint(4, 10) if is_renamed else rng.choice((1, 1, 2, 3, 4, 6))
    shots = []
    for text, answer in (cue.draw() for _ in range(num)):
        shots.append(f"{before}{text}{between}{space}{rename.get(answer, answer)}")
    name = _instruction(cue, rename, rng)
    layout = rng.choice(("run", "run", "in front", "in front", "one document", "instructed"))
    if layout == "run":
        return "".join(f"{BOS}{shot}{EOS}" for shot in shots)
    if layout == "in front":
        head = "\n\n".join([name, *shots[:-1]]) if rng.random() < 0.5 else name
        tail = shots[-1:] if len(head) > len(name) else shots
        return "".join(f"{head}{BOS}{shot}{EOS}" for shot in tail)
    if layout == "one document":
        gap = rng.choice(("\n\n", "\n\n", "\n"))
        return f"{BOS}{gap.join(shots)}{EOS}"
    gap = rng.choice(("\n", "\n\n"))
    return "".join(f"{BOS}{name}{gap}{shot}{EOS}" for shot in shots)


def _instruction(cue: Cue, rename: dict[str, str], rng: random.Random) -> str:
    name = rng.choice(cue.names)
    name = rng.choice((name, name.capitalize() + ".", f"Task: {name}", f"{name.capitalize()}:"))
    if cue.labels and len(cue.labels) <= 10 and rng.random() < 0.6:
        name += rng.choice((" ", "\nLabels: ", " Choose from ")) + ", ".join(rename[label] for label in cue.labels)
    return name


def _renaming(cue: Cue, rng: random.Random) -> dict[str, str]:
    """New names for the labels of a few-class task, half of the time; they hold for one group of documents."""
    if not 2 <= len(cue.labels) <= 5 or rng.random() < 0.5:
        return {label: label for label in cue.labels}
    return dict(zip(cue.labels, rng.sample(FREE_LABELS.split(), len(cue.labels)), strict=True))
