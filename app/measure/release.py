"""Release: whether an alias moves to a version that was just tuned.

The version is compared with the one that the alias means now, on the same backbone and on the examples that tuning
chose by. A lower score does not move the alias unless one is told to move it all the same; a tie does, because the
newer version has seen newer examples. The gate of an alias is asked besides, and no order to move overrules it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from app.errors import CorruptPrompt, GateFailed, InvalidInput, NotFound
from app.measure import metrics
from app.measure.dataset import Example
from app.measure.evaluation import Evaluation, Measurement
from app.measure.promote import Promotion, score_move
from app.measure.served_prompt import ServedPrompt
from app.registry.aliases import main_number
from app.registry.registry import Registry
from app.registry.version import Version

NO_ANSWER: Final = ""
"""Stands for what a version says where the right label is none of its own."""


@dataclass(frozen=True)
class Comparison:
    """A tuned version next to the one that an alias means.

    Attributes:
        alias, version, other: the alias and the ids of the two versions, the other being the alias's.
        metric: of both scores; more of it is better.
        num_examples: on which both were measured.
        score, other_score: None if the other version could not be measured.
        num_unknown: examples whose target the other version has no label for, which it gets wrong.
        reason: why there is no score.
    """

    alias: str
    version: str
    other: str
    metric: str
    num_examples: int
    score: float
    other_score: float | None = None
    num_unknown: int = 0
    reason: str = ""

    @property
    def is_passed(self) -> bool:
        """Whether the version is known to be at least as good."""
        return self.other_score is not None and self.score >= self.other_score

    def in_words(self) -> str:
        """What was found, without what follows from it."""
        if self.other_score is None:
            return f"{self.version} cannot be compared with it: {self.reason}"
        unknown = f", {self.num_unknown} of which have labels that {self.other} lacks" if self.num_unknown else ""
        return (
            f"{self.version} has {self.metric} {self.score:.3f} and {self.other} {self.other_score:.3f} "
            f"on the same {self.num_examples} examples{unknown}"
        )


@dataclass(frozen=True)
class Release:
    """A decision that was carried out.

    Attributes:
        alias: that was to move; None if none was.
        is_moved: whether it means the version now.
        words: what became of the alias and why, for a person; empty if there is nothing to say.
        comparison: None if there was nothing to compare with.
    """

    alias: str | None
    is_moved: bool
    words: str = ""
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        found = {} if self.comparison is None else {"comparison": asdict(self.comparison)}
        return {"is_moved": self.is_moved, **found}


def compare(
    registry: Registry,
    version: Version,
    alias: str,
    measured: Evaluation,
    examples: Sequence[Example],
    *,
    metric: str | None = None,
    teacher: str | None = None,
    is_too_few: bool = False,
) -> Promotion[Comparison | None]:
    """Measure what decides about the move of an alias to a version: its gate's examples, and the version it means now.

    Args:
        measured: the version on the examples.
        metric: to compare by, if `measured` has it; else the main one.
        teacher: digest of the prompt that the examples' targets come from, which nothing could beat on them.
        is_too_few: there are more examples, and there was no time to measure the version on them.

    Returns None if the alias means nothing on this backbone yet, or the version itself, or the teacher.

    Raises what `score_move` raises.
    """
    yield from score_move(registry, version.task, alias, version.number)
    other = _find_other(registry, version, alias)
    if other is None or other.digest in (version.digest, teacher):
        return None
    name = metric if metric in measured.metrics else measured.main_metric
    known = Comparison(alias, version.id, other.id, name, len(examples), measured.metrics[name])
    if is_too_few:
        return replace(known, reason=f"there was time to measure it on {len(examples)} examples only")
    return (yield from _measure(registry, known, other, bool(version.labels), examples))


def release(
    registry: Registry, version: Version, alias: str | None, comparison: Comparison | None, *, is_told: bool
) -> Release:
    """Move the alias, if it may. Args: comparison: what `compare` found. is_told: to move whatever it says."""
    if alias is None:
        return Release(None, is_moved=False)
    if comparison is not None and not is_told and not comparison.is_passed:
        return Release(alias, False, f"{alias} stays at {comparison.other}: {comparison.in_words()}", comparison)
    other = _find_other(registry, version, alias)
    if comparison is not None and not is_told and other is not None and other.id != comparison.other:
        return Release(alias, False, f"{alias} stays at {other.id}, to which it moved in the meantime", comparison)
    try:
        registry.set_alias(version.task, alias, version.number)
    except GateFailed as error:
        return Release(alias, False, f"{alias} stays where it is: {error.message}", comparison)
    words = f"{alias} moves from {comparison.other} to {version.id}: {comparison.in_words()}" if comparison else ""
    return Release(alias, True, words, comparison)


def _find_other(registry: Registry, version: Version, alias: str) -> Version | None:
    """What the alias means on the version's backbone, of two versions the main one; None if that is the version."""
    present = registry.task(version.task).of_target(version.number).aliases.get(alias)
    number = version.number if present is None else main_number(present)
    return None if number == version.number else registry.task(version.task).versions.get(number)


def _measure(
    registry: Registry, known: Comparison, other: Version, has_labels: bool, examples: Sequence[Example]
) -> Promotion[Comparison]:
    """The comparison with the other version's score, or with the reason why it has none."""
    if bool(other.labels) is not has_labels:
        return replace(known, reason="one of them answers with labels, and the other writes")
    unknown = [example for example in examples if other.labels and example.target not in other.labels]
    asked = [example for example in examples if example not in unknown]
    try:
        answers = (yield from _answer(registry, other, asked)) if asked else []
    except (InvalidInput, CorruptPrompt, NotFound) as error:
        return replace(known, reason=error.message)
    targets = [example.target for example in (*asked, *unknown)]
    score = metrics.NAME_TO_METRIC[known.metric]([*answers, *(NO_ANSWER for _ in unknown)], targets)
    return replace(known, other_score=score, num_unknown=len(unknown))


def _answer(registry: Registry, version: Version, examples: Sequence[Example]) -> Promotion[Sequence[str]]:
    measured = yield Measurement(ServedPrompt.of(registry.prompt(version), version), examples)
    assert measured is not None
    return measured.predictions
