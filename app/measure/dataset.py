"""Examples to tune and to measure with: described, packed, split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from app.errors import InvalidInput, shorten
from app.measure.reading.columns import Columns
from app.measure.reading.table import Form


@dataclass(frozen=True, slots=True)
class Example:
    """What the template's `{input}` stands for, and the answer expected in place of its `{target}`.

    Attributes: file, line: where it was read, counted from 1; equal examples may stand in different places.
    """

    input: str
    target: str
    file: str = field(default="", compare=False, repr=False)
    line: int = field(default=0, compare=False, repr=False)

    @property
    def place(self) -> str:
        """For messages; empty if it was read from no file."""
        return f"{self.file}, line {self.line}" if self.line else ""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that is not used. Attributes: reason: what is wrong with it. quote: its target, for a terminal alone."""

    line: int
    reason: str
    quote: str = ""


@dataclass(frozen=True)
class Reading:
    """How a file was read.

    Attributes:
        separator: of the cells of a CSV file.
        columns: which fields were read; None of a text without fields.
        num_rows: of the file, those without anything in them left out.
        num_blank: rows without anything in them.
        system: the system message with which every input begins, on lines of its own; empty if they have none, or
            different ones.
    """

    form: Form
    separator: str | None
    has_header: bool
    columns: Columns | None
    num_rows: int
    num_blank: int = 0
    system: str = ""


@dataclass(frozen=True)
class Dataset:
    """The examples of one file.

    Attributes:
        name: what error messages call the file.
        examples: in file order, duplicates included.
        set_aside: rows of the file that are no examples, and why.
        reading: how the file was read; None if there is no file.
        num_duplicates: examples equal to an earlier one in input and target.
        data_hash: sha256 of the examples, whatever file format they came in.
    """

    name: str
    examples: tuple[Example, ...]
    set_aside: tuple[SetAside, ...] = field(default=(), compare=False)
    reading: Reading | None = field(default=None, compare=False)

    @property
    def columns(self) -> Columns | None:
        return None if self.reading is None else self.reading.columns

    @property
    def system(self) -> str:
        """As of its reading."""
        return "" if self.reading is None else self.reading.system

    @property
    def inputs(self) -> list[str]:
        return [example.input for example in self.examples]

    @property
    def num_duplicates(self) -> int:
        return len(self.examples) - len(set(self.examples))

    @property
    def data_hash(self) -> str:
        return hash_examples(self.examples)

    def place(self, index: int) -> str:
        """File and line of an example, for messages."""
        return self.examples[index].place or f"{self.name}, example {index + 1}"

    def require_labels(self, labels: Sequence[str]) -> None:
        """Raises InvalidInput, with file, line and value: a target is none of the labels."""
        stray = find_stray(self.examples, labels)
        if stray is not None:
            message = f"{self.place(stray)}: the target is none of the {len(labels)} labels"
            raise InvalidInput(message, param="labels", quote=shorten(self.examples[stray].target))

    def without(self, target_to_reason: Mapping[str, str]) -> Dataset:
        """The examples with these targets set aside, and why."""
        kept = tuple(example for example in self.examples if example.target not in target_to_reason)
        moved = [
            SetAside(example.line or number, target_to_reason[example.target], shorten(example.target))
            for number, example in enumerate(self.examples, 1)
            if example.target in target_to_reason
        ]
        return replace(self, examples=kept, set_aside=(*self.set_aside, *moved))


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


def find_stray(examples: Sequence[Example], labels: Sequence[str]) -> int | None:
    """Index of the first example whose target is none of the labels."""
    known = set(labels)
    return next((index for index, example in enumerate(examples) if example.target not in known), None)


def _pack(example: Example) -> bytes:
    return json.dumps([example.input, example.target]).encode() + b"\n"
