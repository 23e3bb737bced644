"""DataLook: what the examples of a task are, in figures and in words, before anything is learned from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Self

from app.measure.dataset import Dataset, Example, Reading, SetAside
from app.measure.reading.columns import MAX_NAME_CHARS, Found
from app.measure.reading.labels import TaskData, find_lookalikes
from app.measure.reading.table import Form, Table

MAX_SHOWN: Final = 20
"""Rows that are set aside, and contradictions, that a record names; the rest is counted."""
MAX_SAID: Final = 5
MAX_LABELS_SAID: Final = 12
SEPARATOR_TO_WORD: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
FORM_TO_WORDS: Final = {
    Form.CSV: "CSV",
    Form.JSON_LINES: "JSON lines",
    Form.JSON: "JSON",
    Form.LINES: "text",
}
FOUND_TO_WORDS: Final = {
    Found.ASKED: "as asked",
    Found.NAMES: "by their names",
    Found.CONTENT: "guessed by their content",
}


@dataclass(frozen=True)
class FileLook:
    """One file.

    Attributes:
        reading: how it was read; None if its examples come from elsewhere, or it is not clear which fields they are.
        num_examples: rows, if it is not clear.
        fields: of the rows, if it is not clear which of them are wanted.
        set_aside: the rows that are not used, in file order.
    """

    name: str
    num_examples: int
    num_duplicates: int = 0
    reading: Reading | None = None
    set_aside: tuple[SetAside, ...] = ()
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Dataset | Table) -> Self:
        """Args: source: a table whose columns are not known yet, or examples."""
        if isinstance(source, Table):
            return cls(source.title, len(source.rows), fields=source.names)
        set_aside = tuple(sorted(source.set_aside, key=lambda row: row.line))
        return cls(source.name, len(source.examples), source.num_duplicates, source.reading, set_aside)

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        told = {"name": self.name, "num_examples": self.num_examples, "num_duplicates": self.num_duplicates}
        if self.fields:
            return {**told, "fields": [name[:MAX_NAME_CHARS] for name in self.fields[:MAX_SHOWN]]}
        named = [{"line": row.line, "reason": row.reason} for row in self.set_aside[:MAX_SHOWN]]
        return {**told, **_describe(self.reading), "num_set_aside": len(self.set_aside), "set_aside": named}

    def in_words(self) -> str:
        """How it was read, in a sentence."""
        return f"{self.name}: {self.num_examples} examples" if self.reading is None else _say(self.name, self.reading)

    @property
    def is_guessed(self) -> bool:
        """Whether its columns were found by their content."""
        return bool(self.reading and self.reading.columns and self.reading.columns.found is Found.CONTENT)

    def say_set_aside(self, *, with_quotes: bool = False) -> Iterator[str]:
        """A sentence, if there is anything to say. Args: with_quotes: the targets too, for a terminal alone."""
        if not self.set_aside:
            return
        told = [
            f"line {row.line} ({row.reason}{f': {row.quote!r}' if with_quotes and row.quote else ''})"
            for row in self.set_aside[:MAX_SAID]
        ]
        more = f" and {len(self.set_aside) - MAX_SAID} more" if len(self.set_aside) > MAX_SAID else ""
        noun = "row is" if len(self.set_aside) == 1 else "rows are"
        yield f"{self.name}: {len(self.set_aside)} {noun} set aside: {', '.join(told)}{more}"

    @property
    def status(self) -> str:
        """For the record of an upload."""
        if self.fields:
            names = ", ".join(name[:MAX_NAME_CHARS] for name in self.fields[:MAX_SHOWN])
            return f"{self.num_examples} rows; name the fields to use with input_field and target_field: {names}"
        counted = f"{self.num_examples} examples, {self.num_duplicates} of them duplicates"
        return "; ".join([counted, *([self.in_words()] if self.is_guessed else []), *self.say_set_aside()])


@dataclass(frozen=True)
class DataLook:
    """Attributes:
    labels: each with the number of its examples, the most frequent first; empty for a task that writes text.
    num_targets: different ones.
    input_chars, target_chars: the shortest, the median and the longest.
    num_duplicates: examples that repeat an earlier one.
    contradictions: places of inputs that have several targets.
    lookalikes: labels that differ only in case and blanks.
    """

    files: tuple[FileLook, ...]
    labels: dict[str, int]
    num_targets: int
    input_chars: tuple[int, int, int]
    target_chars: tuple[int, int, int]
    num_duplicates: int
    contradictions: tuple[str, ...]
    lookalikes: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, data: TaskData) -> Self:
        examples = [example for dataset in data.datasets for example in dataset.examples]
        target_to_count = Counter(example.target for example in examples)
        known = [(label, target_to_count[label]) for label in data.labels]
        return cls(
            files=tuple(map(FileLook.of, data.datasets)),
            labels=dict(sorted(known, key=lambda pair: -pair[1])),
            num_targets=len(target_to_count),
            input_chars=_spread([len(example.input) for example in examples]),
            target_chars=_spread([len(example.target) for example in examples]),
            num_duplicates=sum(dataset.num_duplicates for dataset in data.datasets),
            contradictions=tuple(_find_contradictions(data.datasets)),
            lookalikes=tuple(find_lookalikes(data.labels)),
        )

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types; no input and no target but the labels."""
        return {
            "files": [file.as_dict() for file in self.files],
            "labels": self.labels,
            "num_targets": self.num_targets,
            "input_chars": dict(zip(("shortest", "median", "longest"), self.input_chars, strict=True)),
            "target_chars": dict(zip(("shortest", "median", "longest"), self.target_chars, strict=True)),
            "num_duplicates": self.num_duplicates,
            "num_contradictions": len(self.contradictions),
            "contradictions": list(self.contradictions[:MAX_SHOWN]),
            "lookalikes": [list(group) for group in self.lookalikes],
        }

    def remarks(self) -> list[str]:
        """What of it was guessed, is not used or should be looked at."""
        return [*(file.in_words() for file in self.files if file.is_guessed), *self.warnings()]

    def in_words(self, *, with_quotes: bool = False) -> list[str]:
        """Sentences for a person. Args: with_quotes: the targets of rows that are set aside too."""
        return [
            *(file.in_words() for file in self.files),
            *self._say_task(),
            *self.warnings(with_quotes=with_quotes),
        ]

    def warnings(self, *, with_quotes: bool = False) -> Iterator[str]:
        """Sentences about what is not used, or should be looked at."""
        for file in self.files:
            yield from file.say_set_aside(with_quotes=with_quotes)
        if self.num_duplicates:
            verb = "example repeats" if self.num_duplicates == 1 else "examples repeat"
            yield f"{self.num_duplicates} {verb} an earlier one"
        if self.contradictions:
            more = f" and {len(self.contradictions) - MAX_SAID} more" if len(self.contradictions) > MAX_SAID else ""
            told = "; ".join(self.contradictions[:MAX_SAID])
            verb = "input has" if len(self.contradictions) == 1 else "inputs have"
            yield f"{len(self.contradictions)} {verb} different targets: {told}{more}"
        for group in self.lookalikes:
            counts = " and ".join(f"{label!r} ({self.labels[label]})" for label in group)
            yield f"{counts} are different labels that differ only in case or blanks"

    def _say_task(self) -> Iterator[str]:
        lengths = f"inputs have {_say_spread(self.input_chars, ' characters')}"
        if not self.target_chars[-1]:
            yield lengths
            return
        if self.labels:
            shown = ", ".join(f"{label} ({count})" for label, count in list(self.labels.items())[:MAX_LABELS_SAID])
            rest = len(self.labels) - MAX_LABELS_SAID
            more = f" and {rest} more, down to {min(self.labels.values())} examples" if rest > 0 else ""
            yield f"{len(self.labels)} labels: {shown}{more}"
        else:
            yield f"a task that writes text: {self.num_targets} different targets (--labels a,b makes it choose)"
        yield f"{lengths}, targets {_say_spread(self.target_chars)}"


def _describe(reading: Reading | None) -> dict[str, Any]:
    if reading is None:
        return {}
    columns = reading.columns
    return {
        "form": reading.form.value,
        "separator": reading.separator,
        "has_header": reading.has_header,
        "num_rows": reading.num_rows,
        "num_blank": reading.num_blank,
        "input_field": columns and columns.input,
        "target_field": (columns and columns.target) or None,
        "found": columns and columns.found.value,
        "system_chars": len(reading.system),
    }


def _say(name: str, reading: Reading) -> str:
    form = FORM_TO_WORDS[reading.form]
    if reading.separator is not None:
        form += f" separated by {SEPARATOR_TO_WORD.get(reading.separator, repr(reading.separator))}"
    words = f"{name}: {reading.num_rows} rows of {form}"
    words += "" if reading.has_header or reading.form is not Form.CSV else " without a header"
    if reading.num_blank:
        words += f", {reading.num_blank} more {'is' if reading.num_blank == 1 else 'are'} empty"
    if reading.columns is not None:
        target = f", {reading.columns.target} as target" if reading.columns.target else ""
        words += f"; using {reading.columns.input} as input{target} ({FOUND_TO_WORDS[reading.columns.found]})"
    if reading.system:
        words += f"; all have one system message of {len(reading.system)} characters, which the template says"
    return words


def _spread(lengths: Sequence[int]) -> tuple[int, int, int]:
    return (min(lengths), int(median(lengths)), max(lengths)) if lengths else (0, 0, 0)


def _say_spread(lengths: tuple[int, int, int], unit: str = "") -> str:
    low, middle, high = lengths
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit} (median {middle})"


def _find_contradictions(datasets: Sequence[Dataset]) -> Iterator[str]:
    """The places of each input that has several targets."""
    input_to_first: dict[str, Example] = {}
    input_to_places: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for dataset in datasets:
        for index, example in enumerate(dataset.examples):
            first = input_to_first.setdefault(example.input, example)
            if first.target != example.target:
                places = input_to_places[example.input]
                places.setdefault(first.target, first.place or "an earlier example")
                places.setdefault(example.target, dataset.place(index))
    return (" and ".join(places.values()) for places in input_to_places.values())
