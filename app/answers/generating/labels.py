"""Labels: how likely each answer of a closed list is."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.engine.output.scoring import plan_scoring
from app.measure.label_tree import encode_labels

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.model.layout import Template

MAX_BOOKS = 1024
TINY = 1e-300


@dataclass(frozen=True)
class LabelChances:
    """Attributes:
    probabilities: of each label, in the labels' order; they sum to 1.
    mass: the labels' probabilities together before normalising: how much of the model's belief is on the labels at
        all. A small mass says that the model wanted to answer something else.
    """

    probabilities: tuple[float, ...]
    mass: float

    @classmethod
    def from_log_likelihoods(cls, log_likelihoods: Sequence[float], temperature: float = 1.0) -> LabelChances:
        """Args:
        log_likelihoods: log P(label | prompt, text), natural logarithm.
        temperature: divides them before they are normalised (Guo et al. 2017, section 4.2): the likeliest label
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
        """What would give these chances at temperature 1: of each label, natural logarithm.

        Where the mass is too small for a float, all are shifted alike, and the likeliest label stays the likeliest.
        """
        return [math.log(max(chance, TINY)) + math.log(max(self.mass, TINY)) for chance in self.probabilities]

    @property
    def best(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


class LabelBook:
    """The ids of each task's labels, encoded once: a task of 150 labels would otherwise cost a request milliseconds."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._encoded: OrderedDict[tuple[str, tuple[str, ...]], tuple[list[tuple[int, ...]], int]] = OrderedDict()

    def encode(self, template: Template, labels: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each label as it continues the template. Raises InvalidInput where two are the same."""
        return self._find(template, labels)[0]

    def num_sequences(self, template: Template, labels: Sequence[str]) -> int:
        """Sequences of the engine that scoring all labels of one text takes. Raises what `encode` raises."""
        return self._find(template, labels)[1]

    def _find(self, template: Template, labels: Sequence[str]) -> tuple[list[tuple[int, ...]], int]:
        key = template.text, tuple(labels)
        if key not in self._encoded:
            label_ids = encode_labels(self._backbone, template, labels)
            self._encoded[key] = label_ids, len(plan_scoring(label_ids))
        self._encoded.move_to_end(key)
        while len(self._encoded) > MAX_BOOKS:
            self._encoded.popitem(last=False)
        return self._encoded[key]
