"""Search: which prompts a run trains side by side, and how soon it lets the worse ones go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from app.errors import InvalidInput
from app.task_prompt import PromptKind
from app.tuning.config import Init, TuneConfig

MAX_MEMBERS = 64
LEARNING_RATES = (0.03, 0.1, 0.3)
LENGTHS = (TuneConfig.num_virtual_tokens, 50)
"""Virtual tokens, where nobody says how many: the longer prompts cost little more and can hold more."""


@dataclass(frozen=True)
class Search:
    """A population is the product of all tuples; every member shares the rest of the TuneConfig.

    Successive halving (Jamieson and Talwalkar 2016): at each of `num_cuts` moments the better half by validation goes
    on, at a sixth, a third and two thirds of the updates when there are three. With 12 members a run costs 4.7 times
    what one member costs. Cut earlier, high learning rates are lost, which look worst until they decay.

    Attributes:
        kinds, inits, learning_rates, nums_virtual_tokens, seeds: values to try; see TuneConfig.
        num_cuts: 0 trains every member to the end.
        num_kept: as many are trained to the end at least, and are the result: more than one for an ensemble.
    """

    kinds: tuple[PromptKind, ...]
    inits: tuple[Init, ...]
    learning_rates: tuple[float, ...]
    nums_virtual_tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    num_cuts: int = 3
    num_kept: int = 1

    def __post_init__(self) -> None:
        for name in ("kinds", "inits", "learning_rates", "nums_virtual_tokens", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidInput(f"{name} must hold one or more different values", param=name)
        if self.num_members > MAX_MEMBERS:
            raise InvalidInput(f"the values make {self.num_members} members; at most {MAX_MEMBERS}", param="seeds")
        if not 0 <= self.num_cuts <= 10:
            raise InvalidInput("num_cuts must be at least 0 and at most 10", param="num_cuts")
        if not 1 <= self.num_kept <= self.num_members:
            raise InvalidInput(
                f"of {self.num_members} prompts tuned side by side {self.num_kept} cannot be kept",
                param="publish",
            )

    @classmethod
    def single(cls, config: TuneConfig) -> Search:
        """The one member that the configuration describes."""
        return cls(
            (config.kind,), (config.init,), (config.learning_rate,), (config.num_virtual_tokens,), (config.seed,)
        )

    @classmethod
    def default(cls, config: TuneConfig, *, has_labels: bool, **tried: Any) -> Search:
        """Twelve members around what `config` says; six where there are no labels to start from.

        They have two lengths or, where one is asked for, here or in `config`, two seeds.

        Args: tried: fields to set instead. Raises InvalidInput.
        """
        said = LENGTHS if config.num_virtual_tokens == LENGTHS[0] else (config.num_virtual_tokens,)
        lengths = tried.get("nums_virtual_tokens", said)
        chosen = cls(
            kinds=(config.kind,),
            inits=(Init.VOCAB, Init.LABELS) if has_labels else (Init.VOCAB,),
            learning_rates=LEARNING_RATES,
            nums_virtual_tokens=lengths,
            seeds=(config.seed,) if len(lengths) > 1 else (config.seed, config.seed + 1),
        )
        return replace(chosen, **tried)

    @property
    def num_members(self) -> int:
        values = (self.kinds, self.inits, self.learning_rates, self.nums_virtual_tokens, self.seeds)
        return math.prod(map(len, values))

    def members(self, config: TuneConfig) -> tuple[TuneConfig, ...]:
        """One complete configuration for each member."""
        return tuple(
            replace(
                config,
                kind=kind,
                init=init,
                init_text=config.init_text if init is Init.TEXT else "",
                learning_rate=learning_rate,
                num_virtual_tokens=num_virtual_tokens,
                seed=seed,
            )
            for kind, init, learning_rate, num_virtual_tokens, seed in product(
                self.kinds, self.inits, self.learning_rates, self.nums_virtual_tokens, self.seeds
            )
        )

    def is_cut_at(self, step: int, num_steps: int) -> bool:
        """Whether the worse half leaves after update `step` of `num_steps`."""
        return step in {self._last_cut(num_steps) >> shift for shift in range(self.num_cuts)} - {0}

    def is_settled_at(self, step: int, num_steps: int) -> bool:
        """Whether no cut is to come after update `step` of `num_steps`."""
        return self.num_members == 1 or self.num_cuts == 0 or step >= self._last_cut(num_steps)

    @staticmethod
    def _last_cut(num_steps: int) -> int:
        return 2 * num_steps // 3


def keep_better_half(ranks: Sequence[tuple[float, ...]], at_least: int = 1) -> list[int]:
    """Indexes of the better half, rounded up, in their old order; of more where `at_least` says so."""
    order = sorted(range(len(ranks)), key=lambda i: ranks[i], reverse=True)
    return sorted(order[: max(at_least, math.ceil(len(order) / 2))])
