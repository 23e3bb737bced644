"""Search: which prompts a run trains side by side, and how soon it drops the worse ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from app.errors import InvalidInput
from app.tuning.config import AXES, Declared, Init, TuneConfig, declare, declared_of

MAX_MEMBERS = 64
LEARNING_RATES = (0.03, 0.1, 0.3)
LENGTHS = (20, 50)
"""Virtual tokens, if none are asked for: the longer prompts cost little more and can hold more."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Search(Declared):
    """A population is the product of all tuples; every member shares the rest of the TuneConfig.

    Successive halving (Jamieson and Talwalkar 2016): at each of `num_cuts` moments the better half by validation
    continues, at a sixth, a third and two thirds of the updates if there are three. With 12 members a run costs 4.7
    times what one member costs. Earlier cuts lose high learning rates, which look worst until they decay.

    Attributes:
        values: those to try, by hyperparameter.
        candidates: members that differ in more than a product can say, the most promising first: values by
            hyperparameter. What `values` names replaces theirs.
        num_cuts: 0 trains every member to the end.
        num_kept: at least this many are trained to the end, and are the result: more than one for an ensemble.
        rate_factor: of the learning rates that a run with a budget tries if none are asked for.
        is_open: candidates are still to be added.
    """

    values: Mapping[str, tuple[Any, ...]] = Field(default_factory=dict)
    num_cuts: int = declare(3, "How often the worse half of the combinations is dropped.", low=0, high=10)
    num_kept: int = 1
    candidates: tuple[Mapping[str, Any], ...] = ({},)
    rate_factor: float = 1.0
    is_open: bool = False

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if not values or len(set(values)) < len(values):
                raise InvalidInput(f"{name} must hold one or more different values", param=name)
        if self.num_members > MAX_MEMBERS:
            raise InvalidInput(f"the values make {self.num_members} members; at most {MAX_MEMBERS}", param="seed")
        most = MAX_MEMBERS if self.is_open else self.num_members
        if not 1 <= self.num_kept <= most:
            raise InvalidInput(
                f"{self.num_kept} prompts cannot be kept of {most} that are tuned side by side",
                param="publish",
            )

    @classmethod
    def default(cls, config: TuneConfig, *, has_labels: bool, **asked: Any) -> Search:
        """Twelve members around what `config` says; six if there are no labels to start from.

        They have two lengths or, if one is asked for, here or in `config`, two seeds.

        Args: asked: values to try instead, by hyperparameter; `num_cuts`, `num_kept`. Raises InvalidInput.
        """
        said = LENGTHS if config.num_virtual_tokens == LENGTHS[0] else (config.num_virtual_tokens,)
        lengths = asked.get("num_virtual_tokens", said)
        values = {
            "init": (Init.VOCAB, Init.LABELS) if has_labels else (Init.VOCAB,),
            "learning_rate": LEARNING_RATES,
            "num_virtual_tokens": lengths,
            "seed": (config.seed,) if len(lengths) > 1 else (config.seed, config.seed + 1),
        }
        values |= {axis.name: asked.pop(axis.name) for axis in AXES if axis.name in asked}
        return cls(values, **asked)

    @classmethod
    def asked(cls, asked: Mapping[str, Any], *, rate_factor: float = 1.0) -> Search:
        """What a run with a budget is to respect; the rest it chooses.

        Args: asked: values by hyperparameter; `num_cuts`, `num_kept`. Raises InvalidInput.
        """
        names = {axis.name for axis in AXES}
        values = {name: tuple(value) for name, value in asked.items() if name in names}
        others = {name: value for name, value in asked.items() if name not in names}
        return cls(values, **others, rate_factor=rate_factor, is_open=True)

    @property
    def num_members(self) -> int:
        return len(self._choices)

    def values_of(self, name: str, config: TuneConfig) -> tuple[Any, ...]:
        """The different values of one hyperparameter among the members."""
        return tuple(dict.fromkeys(choice.get(name, getattr(config, name)) for choice in self._choices))

    def members(self, config: TuneConfig) -> tuple[TuneConfig, ...]:
        """One complete configuration for each member."""
        return tuple(_vary(config, choice) for choice in self._choices)

    def first(self, num_members: int, num_cuts: int) -> Search:
        """The same with its first members only."""
        return Search({}, num_cuts, min(self.num_kept, num_members), self._choices[:num_members])

    @cached_property
    def _choices(self) -> tuple[Mapping[str, Any], ...]:
        """What each member says of its own; none twice."""
        names = [axis.name for axis in AXES if axis.name in self.values]
        tuples = list(product(*(self.values[name] for name in names)))
        choices: list[Mapping[str, Any]] = []
        for candidate, values in product(self.candidates, tuples):
            choice = {**candidate, **dict(zip(names, values, strict=True))}
            if choice not in choices:
                choices.append(choice)
        return tuple(choices)

    def record(self, config: TuneConfig) -> dict[str, Any]:
        """In JSON's types, as saved runs and provenance have it."""
        tried = {axis.plural: self.values_of(axis.name, config) for axis in AXES}
        return {**tried, "num_cuts": self.num_cuts, "num_kept": self.num_kept}

    def is_cut_at(self, step: int, num_steps: int) -> bool:
        """Whether the worse half is dropped after update `step` of `num_steps`."""
        return step in {self._last_cut(num_steps) >> shift for shift in range(self.num_cuts)} - {0}

    def is_settled_at(self, step: int, num_steps: int) -> bool:
        """Whether no cut is to come after update `step` of `num_steps`."""
        return self.num_members == 1 or self.num_cuts == 0 or step >= self._last_cut(num_steps)

    @staticmethod
    def _last_cut(num_steps: int) -> int:
        return 2 * num_steps // 3


SEARCH_HYPERPARAMETERS = declared_of(Search)


def _vary(config: TuneConfig, choice: Mapping[str, Any]) -> TuneConfig:
    text = choice.get("init_text", config.init_text)
    return replace(config, **{**choice, "init_text": text if choice.get("init", config.init) == Init.TEXT else ""})


def keep_better_half(ranks: Sequence[tuple[float, ...]], at_least: int = 1) -> list[int]:
    """Indexes of the better half, rounded up, in their old order; of more if `at_least` says so."""
    return keep_best(ranks, max(at_least, math.ceil(len(ranks) / 2)))


def keep_best(ranks: Sequence[tuple[float, ...]], num: int) -> list[int]:
    """Indexes of the best, in their old order."""
    order = sorted(range(len(ranks)), key=lambda i: ranks[i], reverse=True)
    return sorted(order[:num])
