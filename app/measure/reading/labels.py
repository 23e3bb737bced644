"""Labels: whether a task chooses among some or writes text, as its examples say, and which rows do not fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from statistics import median
from typing import Final

from app.errors import InvalidInput, shorten
from app.measure.dataset import Dataset, Example

MAX_LABELS: Final = 1000
MAX_LABEL_CHARS: Final = 100
MIN_ROWS_PER_LABEL: Final = 3
MAX_ODD_SHARE: Final = 0.05
"""Of the rows, that may have a target too rare to be a label; if more do, the task writes text."""
TYPICAL_ROWS: Final = 10
"""Of labels next to which any number of rare targets is odd. Next to labels that are rare themselves, rare targets are
the rest of an open set, such as names."""
MAX_LONE_TARGETS: Final = 3
NUM_PLACES_SHOWN: Final = 5


@dataclass(frozen=True)
class TaskData:
    """Attributes:
    train, validation: rows whose targets are none of the labels are set aside.
    labels: in order; empty for a task that writes text.
    """

    train: Dataset
    validation: Dataset | None
    labels: tuple[str, ...]

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return (self.train,) if self.validation is None else (self.train, self.validation)


def settle(train: Dataset, validation: Dataset | None, labels: Sequence[str] | None = None) -> TaskData:
    """What the task is, and the examples that fit it.

    Args: labels: None finds them in the targets; empty makes it a task that writes text.

    Raises InvalidInput, with file and line: every target is the same, or one is none of the labels that were given.
    """
    given = TaskData(train, validation, tuple(labels or ()))
    if labels is not None and not labels:
        return given
    target_to_count = Counter(example.target for dataset in given.datasets for example in dataset.examples)
    if labels:
        for dataset in given.datasets:
            dataset.require_labels(given.labels)
        _require_several(train.name, target_to_count)
        return given
    _require_several(train.name, target_to_count)
    frequent = {target for target, count in target_to_count.items() if count >= MIN_ROWS_PER_LABEL}
    odd = target_to_count.keys() - frequent
    if not _are_labels(target_to_count, frequent):
        return given
    if len(frequent) < 2:
        if len(frequent) + len(odd) > MAX_LONE_TARGETS:
            return given
        raise _too_rare(given, odd, target_to_count.total())
    return _set_aside(replace(given, labels=tuple(sorted(frequent))), odd, target_to_count)


def find_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The targets that `settle` takes for labels, sorted; empty if the task is to write text, or has one target."""
    try:
        return settle(Dataset("data", tuple(examples)), None).labels
    except InvalidInput:
        return ()


def _are_labels(target_to_count: Counter[str], frequent: Collection[str]) -> bool:
    """Whether the frequent targets are a closed set: they are few and short, and nearly all rows have one of them."""
    if not 1 <= len(frequent) <= MAX_LABELS or max(map(len, frequent)) > MAX_LABEL_CHARS:
        return False
    num_odd = len(target_to_count) - len(frequent)
    if num_odd <= len(target_to_count) // 10:
        return True
    num_rows = target_to_count.total()
    num_odd_rows = num_rows - sum(target_to_count[target] for target in frequent)
    is_typical = median(target_to_count[target] for target in frequent) >= TYPICAL_ROWS
    return num_odd_rows <= max(1, MAX_ODD_SHARE * num_rows) and (num_odd == 1 or is_typical)


def _require_several(name: str, target_to_count: Counter[str]) -> None:
    if len(target_to_count) == 1:
        [target] = target_to_count
        message = f"{name}: every target is the same: there is nothing to tell apart"
        raise InvalidInput(message, param="target", quote=shorten(target))


def _too_rare(data: TaskData, odd: Collection[str], num_rows: int) -> InvalidInput:
    places = [d.place(i) for d in data.datasets for i, example in enumerate(d.examples) if example.target in odd]
    more = f" and {len(places) - NUM_PLACES_SHOWN} more" if len(places) > NUM_PLACES_SHOWN else ""
    message = (
        f"all but {len(places)} of {num_rows} targets are the same, and the others are too rare to be learned "
        f"({'; '.join(places[:NUM_PLACES_SHOWN])}{more}): add rows of them, or name them as labels to keep them"
    )
    return InvalidInput(message, param="labels", quote=", ".join(sorted(map(shorten, odd))))


def _set_aside(data: TaskData, odd: Collection[str], target_to_count: Counter[str]) -> TaskData:
    """Without the rows of odd targets, each with its reason."""
    target_to_reason = {target: _say_why(target, target_to_count[target], data.labels) for target in odd}
    train = data.train.without(target_to_reason)
    validation = None if data.validation is None else data.validation.without(target_to_reason)
    return replace(data, train=train, validation=validation)


def _say_why(target: str, count: int, labels: Sequence[str]) -> str:
    """Never the target itself: the caller of a server may not be the one who reads its events."""
    times = "once" if count == 1 else "twice"
    key_to_label = {_key(label): label for label in labels}
    near = get_close_matches(_key(target), key_to_label, n=1, cutoff=0.75)
    hint = f", and {key_to_label[near[0]]!r} seems to be meant" if near else ""
    return f"its target occurs only {times}{hint}"


def _key(label: str) -> str:
    """What labels that differ only in case and blanks have in common."""
    return "".join(label.split()).casefold()


def find_lookalikes(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Labels that differ only in case and blanks, grouped."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[_key(label)].append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]
