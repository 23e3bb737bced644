"""Ensembles: versions that answer together on the one backbone (Lester et al. 2021, section 6).

An ensemble has no place in the registry: its name says who is in it, `sentiment@1+2+3` or `sentiment+tone@4`. Its
members answer in one batch, as N requests for N versions do, and what they say is combined here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from app.answers.generating.labels import LabelChances
from app.answers.targets import Target, find_target
from app.engine.gather import all_of
from app.errors import InvalidInput
from app.measure.metrics import words_of
from app.registry.reference import JOINT, name_together, spell_out

if TYPE_CHECKING:
    from app.answers.readiness import Services

MAX_ENSEMBLE: Final = 8


class Combine(StrEnum):
    """How several answers become one."""

    AVERAGE = "average"
    """The mean of the members' probabilities, each with its own version's temperature."""
    VOTE = "vote"
    """What most members say; of labels the probabilities are the shares of the votes."""


@dataclass(frozen=True)
class Ensemble:
    """Attributes: members: two or more different versions; those with labels have the same ones, in the same order."""

    members: tuple[Target, ...]

    @classmethod
    def of(cls, targets: Sequence[Target], *, param: str) -> Ensemble:
        """Raises InvalidInput with `param`: one twice, or labels that differ."""
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


async def find_answerer(services: Services, name: str, *, param: str = "model") -> Target | Ensemble:
    """What `name` means now: one version, or several joined by `+`.

    Raises InvalidInput: too many; and what find_target and Ensemble.of raise.
    """
    if JOINT not in name or name == services.backbone.name:
        return await find_target(services, name, param=param)
    names = spell_out(name)
    if len(names) > MAX_ENSEMBLE:
        raise InvalidInput(f"an ensemble has at most {MAX_ENSEMBLE} members", param=param)
    return Ensemble.of(await all_of(find_target(services, each, param=param) for each in names), param=param)


def choose_combine(answerer: Target | Ensemble, asked: Combine | None, *, param: str = "combine") -> Combine:
    """What a request means. Raises InvalidInput: it asks a single version to combine, or texts to be averaged."""
    if asked is not None and isinstance(answerer, Target):
        raise InvalidInput("this belongs to an ensemble, such as sentiment@1+2+3", param=param)
    if asked is Combine.AVERAGE and not answerer.labels:
        raise InvalidInput("texts cannot be averaged; leave this out or let it be vote", param=param)
    return asked or (Combine.AVERAGE if answerer.labels else Combine.VOTE)


def combine_chances(chances: Sequence[LabelChances], how: Combine) -> tuple[int, LabelChances]:
    """The label that wins, and the chances of all; votes that tie go to the higher average.

    Args: chances: of each member, for the same labels in the same order. Their mean mass is the mass.
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
