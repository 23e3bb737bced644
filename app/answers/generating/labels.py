"""Labels: how likely each answer of a closed list is."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.measure.label_tree import encode_labels

if TYPE_CHECKING:
    from app.engine.output.scoring import ScoringPlan
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
    """The scoring plan of each task's labels, made once: for 150 labels it would otherwise cost a request milliseconds.

    Args: plan: `AsyncEngine.plan_scoring`.
    """

    def __init__(self, backbone: Backbone, plan: Callable[[Sequence[Sequence[int]]], ScoringPlan]) -> None:
        self._backbone = backbone
        self._plan = plan
        self._key_to_plan: OrderedDict[tuple[str, tuple[str, ...]], ScoringPlan] = OrderedDict()

    def plan(self, template: Template, labels: Sequence[str]) -> ScoringPlan:
        """How the labels are scored as they continue the template. Raises InvalidInput where two are the same."""
        key = template.text, tuple(labels)
        if key not in self._key_to_plan:
            self._key_to_plan[key] = self._plan(encode_labels(self._backbone, template, labels))
        self._key_to_plan.move_to_end(key)
        while len(self._key_to_plan) > MAX_BOOKS:
            self._key_to_plan.popitem(last=False)
        return self._key_to_plan[key]
