"""Columns: which fields of a file's rows are the input and the target.

The caller says it, or names that are known say it, or the content does where it is clear. What is not clear is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import Final

from app.errors import InvalidInput
from app.measure.reading.table import Form, Table

FIELD_PAIRS: Final = (("input", "target"), ("text", "label"), ("prompt", "completion"))
MESSAGES: Final = "messages"
# fmt: off
INPUT_NAMES: Final = {
    "input", "text", "prompt", "sentence", "message", "review", "question", "query", "content", "document", "article",
    "utterance", "comment", "tweet", "request", "body", "sms", "passage", "description"}
TARGET_NAMES: Final = {
    "target", "label", "completion", "output", "answer", "category", "class", "intent", "sentiment", "topic", "tag",
    "response", "summary", "headline", "language", "domain", "expected", "ground_truth", "gold", "labels", "y"}
# fmt: on
KNOWN_NAMES: Final = frozenset(INPUT_NAMES | TARGET_NAMES)
MAX_LABEL_CHARS: Final = 100
MIN_ROWS_PER_VALUE: Final = 3
"""Of a column that holds labels: its values are seen this often, on average."""
NUM_LOOKED_AT: Final = 5000
MAX_NAMES_SHOWN: Final = 12
MAX_NAME_CHARS: Final = 40
REMEDY: Final = "name them with --input-field and --target-field (over HTTP: input_field and target_field)"
REMEDY_INPUT: Final = "name it with --input-field (over HTTP: input_field)"
NUMBER: Final = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?%?")
CODE: Final = re.compile(r"\w+://\S+|[0-9a-fA-F]{4,}(-[0-9a-fA-F]{4,})+|\S+@\S+")
DAY: Final = r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})"
DATE: Final = re.compile(rf"{DAY}([T ]\d{{1,2}}:\d{{2}}.*)?|\d{{1,2}}:\d{{2}}(:\d{{2}})?")


class Found(StrEnum):
    """How the columns were found."""

    ASKED = "asked"
    NAMES = "names"
    CONTENT = "content"


@dataclass(frozen=True, slots=True)
class Columns:
    """Attributes: input, target: names of the fields, as the file has them; no target if the inputs are alone."""

    input: str
    target: str = ""
    found: Found = Found.NAMES


CHAT: Final = Columns("user", "assistant")
"""Of rows with OpenAI's `messages`: the roles."""


def find_columns(table: Table, asked_input: str | None = None, asked_target: str | None = None) -> Columns:
    """The input's and the target's.

    Raises InvalidInput: a field that was asked for is not there, or it is not clear which ones they are; the message
    has their names.
    """
    for name, param in ((asked_input, "input_field"), (asked_target, "target_field")):
        if name is not None:
            _require(table, name, param)
    if asked_input is not None and asked_input == asked_target:
        raise InvalidInput("input_field and target_field must differ", param="target_field")
    found = guess_columns(table, asked_input, asked_target)
    if found is None:
        reason = "it is not clear which field is the input and which is the target"
        if len(table.names) == 1:
            reason = "there is only one field, and examples have an input and a target"
        raise InvalidInput(f"{table.title}: {reason}; {REMEDY}. {_list_names(table)}", param="input_field")
    return found


def guess_columns(table: Table, asked_input: str | None = None, asked_target: str | None = None) -> Columns | None:
    """As `find_columns`; None if it is not clear. Args: asked_input, asked_target: fields of the table."""
    if asked_input is None and asked_target is None:
        named = CHAT if _has_messages(table) else _find_pair(table)
        if named is not None:
            return named
    profiles = [_Profile.of(table, name) for name in table.names]
    return _Guess(profiles, asked_input, asked_target).find()


def find_input(table: Table, asked: str | None = None) -> Columns:
    """Of inputs without targets. Raises as `find_columns`."""
    if asked is not None:
        _require(table, asked, "input_field")
        return Columns(asked, found=Found.ASKED)
    found = guess_input(table)
    if found is None:
        raise InvalidInput(
            f"{table.title}: it is not clear which field is the input; {REMEDY_INPUT}. {_list_names(table)}",
            param="input_field",
        )
    return found


def guess_input(table: Table) -> Columns | None:
    """As `find_input`; None if it is not clear."""
    profiles = [_Profile.of(table, name) for name in table.names]
    for is_wanted, how in ((_is_input_name, Found.NAMES), (_is_text, Found.CONTENT), (_is_filled, Found.CONTENT)):
        chosen = [each.name for each in profiles if is_wanted(each)]
        if len(chosen) == 1 and not _has_messages(table):
            return Columns(chosen[0], found=how)
    labeled = guess_columns(table)
    return None if labeled is None else replace(labeled, target="")


def _require(table: Table, name: str, param: str) -> None:
    if name not in table.names:
        raise InvalidInput(f"{table.title}: {param} names no field of this file. {_list_names(table)}", param=param)


def _list_names(table: Table) -> str:
    shown = ", ".join(name[:MAX_NAME_CHARS] for name in table.names[:MAX_NAMES_SHOWN])
    rest = len(table.names) - MAX_NAMES_SHOWN
    return f"It has: {shown}" + (f" and {rest} more" if rest > 0 else "")


def _has_messages(table: Table) -> bool:
    return MESSAGES in table.names and table.form is not Form.CSV


def _find_pair(table: Table) -> Columns | None:
    """The first of the known pairs that is there, whatever the case of its letters."""
    lower_to_name = {name.lower(): name for name in reversed(table.names)}
    for first, second in FIELD_PAIRS:
        if first in lower_to_name and second in lower_to_name:
            return Columns(lower_to_name[first], lower_to_name[second])
    return None


@dataclass(frozen=True, slots=True)
class _Profile:
    """What a column holds, of the rows that were looked at.

    Attributes: values: those that are not empty; none if it holds lists or objects of JSON.
    """

    name: str
    values: list[str]

    @classmethod
    def of(cls, table: Table, name: str) -> _Profile:
        step = max(1, len(table.rows) // NUM_LOOKED_AT)
        found = [row.fields.get(name) for row in table.rows[::step]]
        if any(isinstance(value, list | dict) for value in found):
            return cls(name, [])
        return cls(name, [str(value).strip() for value in found if value is not None and str(value).strip()])

    @property
    def num_distinct(self) -> int:
        return len(set(self.values))

    def all_match(self, pattern: re.Pattern[str]) -> bool:
        return all(pattern.fullmatch(value) for value in self.values)

    @property
    def is_constant(self) -> bool:
        return self.num_distinct < 2

    @property
    def is_key(self) -> bool:
        """A different single word in every row: a number, a link, an id."""
        return self.num_distinct == len(self.values) and not any(" " in value for value in self.values)


def _is_input_name(profile: _Profile) -> bool:
    return profile.name.lower() in INPUT_NAMES


def _is_target_name(profile: _Profile) -> bool:
    return profile.name.lower() in TARGET_NAMES


def _is_filled(profile: _Profile) -> bool:
    return bool(profile.values)


def _is_id(profile: _Profile) -> bool:
    """A number, a link or a code that differs in every row, or a moment."""
    is_code = profile.all_match(NUMBER) or profile.all_match(CODE)
    return (profile.is_key and is_code) or profile.all_match(DATE)


def _is_worth_reading(profile: _Profile) -> bool:
    """Neither empty or the same everywhere, nor an id, a date or a measure."""
    is_measure = profile.all_match(NUMBER) and not _has_few_values(profile)
    return not (profile.is_constant or profile.is_key or is_measure or profile.all_match(DATE))


def _has_few_values(profile: _Profile) -> bool:
    is_short = max(map(len, profile.values), default=0) <= MAX_LABEL_CHARS
    return is_short and profile.num_distinct * MIN_ROWS_PER_VALUE <= len(profile.values)


def _is_text(profile: _Profile) -> bool:
    """Most values differ and have several words."""
    has_words = fmean([len(value.split()) for value in profile.values] or [0]) >= 2
    return has_words and not _has_few_values(profile) and _is_worth_reading(profile)


def _is_label(profile: _Profile) -> bool:
    return _has_few_values(profile) and _is_worth_reading(profile) and not profile.all_match(NUMBER)


def _is_number_label(profile: _Profile) -> bool:
    """Such as a number of stars."""
    return _has_few_values(profile) and _is_worth_reading(profile) and profile.all_match(NUMBER)


@dataclass(frozen=True)
class _Guess:
    """The columns by their names and contents; what was asked for is settled."""

    profiles: Sequence[_Profile]
    asked_input: str | None
    asked_target: str | None

    def find(self) -> Columns | None:
        """None if it is not clear."""
        if self.asked_input is not None and self.asked_target is not None:
            return Columns(self.asked_input, self.asked_target, Found.ASKED)
        target, input_ = self.asked_target, self.asked_input
        how = Found.NAMES
        if target is None:
            target = self._only(_is_target_name, {input_})
        if input_ is None:
            input_ = self._only(_is_input_name, {target})
        if target is None or input_ is None:
            how = Found.CONTENT
            filled = [each for each in self.profiles if each.values]
            if target is None:
                target = self._only(_is_label, {input_}) or self._only(_is_number_label, {input_})
            if input_ is None:
                input_ = self._only(_is_text, {target})
            if len(filled) == 2 and not any(map(_is_id, filled)):
                input_, target = self._complete([each.name for each in filled], input_, target)
        return None if target is None or input_ is None else Columns(input_, target, how)

    def _only(self, is_wanted: Callable[[_Profile], bool], taken: Collection[str | None]) -> str | None:
        """The one column that is as wanted, if it is the only one."""
        found = [each.name for each in self.profiles if each.name not in taken and is_wanted(each)]
        return found[0] if len(found) == 1 else None

    @staticmethod
    def _complete(names: Sequence[str], input_: str | None, target: str | None) -> tuple[str, str]:
        """Of two columns: one is known by the other; else the first is the input."""
        if target is not None:
            return next(name for name in names if name != target), target
        if input_ is not None:
            return input_, next(name for name in names if name != input_)
        return names[0], names[1]
