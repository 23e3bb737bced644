"""Ensembles: versions that answer together on the one backbone (Lester et al. 2021, section 6).

The registry holds no ensembles: the name says who is in one, `sentiment@1+2+3` or `sentiment+tone@4`. Its members
answer in one batch, as N requests for N versions do, and their answers are combined here. A single version is treated
as an ensemble of one, so callers need not know which it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, Final

from app.answers.generating.labels import LabelChances
from app.answers.targets import Target
from app.errors import InvalidInput
from app.measure.metrics import words_of
from app.registry.reference import JOINT, name_together

MAX_ENSEMBLE: Final = 8


class Combine(StrEnum):
    """How several answers become one."""

    AVERAGE = "average"
    """The mean of the members' probabilities, each with its own version's temperature."""
    VOTE = "vote"
    """What most members say; the probability of a label is its share of the votes."""


@dataclass(frozen=True)
class Ensemble:
    """Attributes: members: two or more different versions; those with labels have the same ones, in the same order."""

    members: tuple[Target, ...]
    is_ensemble: ClassVar = True

    @classmethod
    def of(cls, targets: Sequence[Target], *, param: str) -> Ensemble:
        """Raises InvalidInput with `param`: a member named twice, or labels that differ."""
        first = targets[0]
        for index, target in enumerate(targets):
            if target.model_id in [earlier.model_id for earlier in targets[:index]]:
                raise InvalidInput(f"the ensemble names {target.model_id} twice", param=param)
            if set(target.labels) != set(first.labels):
                raise InvalidInput(
                    f"members of an ensemble have the same labels, and {target.model_id} and {first.model_id} do not",
                    param=param,
                )
        return cls(tuple(replace(target, labels=first.labels) for target in targets))

    @property
    def model_id(self) -> str:
        """Every member, pinned: `sentiment@1+2+3`."""
        return name_together(member.model_id for member in self.members)

    @property
    def flow(self) -> str:
        """The tasks, for messages; each member's work counts against its own."""
        return JOINT.join(dict.fromkeys(member.flow for member in self.members))

    @property
    def labels(self) -> tuple[str, ...]:
        return self.members[0].labels

    def choose_combine(self, asked: Combine | None, *, param: str = "combine") -> Combine:
        """What a request means. Raises InvalidInput: texts cannot be averaged."""
        if asked is Combine.AVERAGE and not self.labels:
            raise InvalidInput("texts cannot be averaged; leave this out or let it be vote", param=param)
        return asked or (Combine.AVERAGE if self.labels else Combine.VOTE)

    def combine_chances(self, chances: Sequence[LabelChances], how: Combine | None) -> tuple[int, LabelChances]:
        """Args: how: None averages. See `combine_chances`."""
        return combine_chances(chances, how or Combine.AVERAGE)


AnyTarget = Target | Ensemble


def combine_chances(chances: Sequence[LabelChances], how: Combine) -> tuple[int, LabelChances]:
    """Index of the label that wins, and the chances of all labels; a tie goes to the label with the higher average.

    Args: chances: of each member, for the same labels in the same order. The mean of their masses is the mass.
    """
    columns = zip(*(each.probabilities for each in chances), strict=True)
    average = tuple(sum(column) / len(chances) for column in columns)
    mass = sum(each.mass for each in chances) / len(chances)
    averaged = LabelChances(average, mass)
    if how is Combine.AVERAGE:
        return averaged.best, averaged
    votes = Counter(each.best for each in chances)
    winner = max(votes, key=lambda label: (votes[label], average[label]))
    return winner, LabelChances(tuple(votes[label] / len(chances) for label in range(len(average))), mass)


def choose_text(texts: Sequence[str]) -> int:
    """Index of the first answer that most members give: the same words, whatever their case and punctuation."""
    keys = [" ".join(words_of(text)) or text.strip() for text in texts]
    votes = Counter(keys)
    return max(range(len(keys)), key=lambda index: votes[keys[index]])
