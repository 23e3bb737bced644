"""Examples to tune and to measure with: described, packed, split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.errors import InvalidInput

MAX_LABELS = 1000
MIN_ROWS_PER_LABEL = 3


@dataclass(frozen=True, slots=True)
class Example:
    """What the template's `{input}` stands for, and the answer expected in place of its `{target}`."""

    input: str
    target: str


@dataclass(frozen=True)
class Dataset:
    """The examples of one file.

    Attributes:
        name: what error messages call the file.
        examples: in file order, duplicates included.
        lines: of the file, counted from 1, on which each example stands; empty if there is no file.
        num_duplicates: examples equal to an earlier one in input and target.
        data_hash: sha256 of the examples, whatever file format they came in.
    """

    name: str
    examples: tuple[Example, ...]
    lines: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def num_duplicates(self) -> int:
        return len(self.examples) - len(set(self.examples))

    @property
    def data_hash(self) -> str:
        return hash_examples(self.examples)

    def place(self, index: int) -> str:
        """File and line of an example, for messages."""
        return f"{self.name}, line {self.lines[index]}" if self.lines else f"{self.name}, example {index + 1}"

    def require_labels(self, labels: Sequence[str]) -> None:
        """Raises InvalidInput, with file and line: a target is none of the labels."""
        stray = find_stray(self.examples, labels)
        if stray is not None:
            raise InvalidInput(f"{self.place(stray)}: the target is none of the {len(labels)} labels", param="labels")


def hash_examples(examples: Sequence[Example]) -> str:
    """sha256 of `pack_examples`, 64 hex digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_pack(example))
    return digest.hexdigest()


def pack_examples(examples: Sequence[Example]) -> bytes:
    """The one form of examples whose bytes are kept and hashed: a line of JSON each, `["input", "target"]`, ASCII."""
    return b"".join(map(_pack, examples))


def unpack_examples(content: bytes) -> list[Example]:
    """Args: content: of `pack_examples`, its hash checked."""
    return [Example(*json.loads(line)) for line in content.splitlines()]


def split_examples(examples: Sequence[Example], validation_share: float = 0.1) -> tuple[list[Example], list[Example]]:
    """(train, validation), by a hash of the input: the same example falls on the same side in every file.

    Equal inputs stay together, so validation never repeats a training input.
    """
    train: list[Example] = []
    validation: list[Example] = []
    for example in examples:
        point = int.from_bytes(hashlib.sha256(example.input.encode()).digest()[:8], "big") / 2**64
        (validation if point < validation_share else train).append(example)
    if not train or not validation:
        raise InvalidInput("there are too few examples to set some aside for validation: give a validation file")
    return train, validation


def find_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The distinct targets, sorted, if they look like labels: few, short, and nearly all seen several times.

    Empty if the task is to write text.
    """
    target_to_count = Counter(example.target for example in examples)
    num_rare = sum(count < MIN_ROWS_PER_LABEL for count in target_to_count.values())
    has_labels = (
        2 <= len(target_to_count) <= MAX_LABELS
        and num_rare <= len(target_to_count) // 10
        and len(target_to_count) * MIN_ROWS_PER_LABEL <= len(examples)
        and max(map(len, target_to_count)) <= 100
    )
    return tuple(sorted(target_to_count)) if has_labels else ()


def find_stray(examples: Sequence[Example], labels: Sequence[str]) -> int | None:
    """Index of the first example whose target is none of the labels."""
    known = set(labels)
    return next((index for index, example in enumerate(examples) if example.target not in known), None)


def _pack(example: Example) -> bytes:
    return json.dumps([example.input, example.target]).encode() + b"\n"
