"""LabelChances: how likely each answer of a closed list is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TINY = 1e-300


@dataclass(frozen=True)
class LabelChances:
    """Attributes:
    probabilities: of each label, in the labels' order; they sum to 1.
    mass: sum of the labels' probabilities before normalizing: how much of the model's belief is on the labels at
        all. A small mass says that the model wanted to answer something else.
    """

    probabilities: tuple[float, ...]
    mass: float

    @classmethod
    def from_log_likelihoods(cls, log_likelihoods: Sequence[float], temperature: float = 1.0) -> LabelChances:
        """Args:
        log_likelihoods: log P(label | prompt, text), natural logarithm.
        temperature: divides them before they are normalized (Guo et al. 2017, section 4.2): the likeliest label
            stays the likeliest, and the mass is untouched.
        """
        highest = max(log_likelihoods)
        if not math.isfinite(highest):
            return cls((1 / len(log_likelihoods),) * len(log_likelihoods), 0.0)
        mass = math.exp(highest) * sum(math.exp(value - highest) for value in log_likelihoods)
        weights = [math.exp((value - highest) / temperature) for value in log_likelihoods]
        total = sum(weights)
        return cls(tuple(weight / total for weight in weights), min(1.0, mass))

    def to_log_likelihoods(self) -> list[float]:
        """Of each label, natural logarithm: what would give these chances at temperature 1.

        If the mass is too small for a float, all are shifted alike, and the likeliest label stays the likeliest.
        """
        return [math.log(max(chance, TINY)) + math.log(max(self.mass, TINY)) for chance in self.probabilities]

    @property
    def best(self) -> int:
        """Index of the likeliest label."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)
