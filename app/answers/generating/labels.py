"""LabelScorer: how likely each label of a task is for a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from app.answers.call import Call
from app.engine.admission import EngineRequest, Scoring, ScoringPlan
from app.engine.async_engine import AsyncEngine, all_of
from app.model.backbone import Backbone
from app.model.layout import Template, encode_labels
from app.telemetry import Metrics

if TYPE_CHECKING:
    from app.answers.targets import AnyTarget, Combine, Target

MAX_PLANS = 1024
"""Tasks whose labels stay encoded: for 150 labels that would cost every request milliseconds."""
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


@dataclass(frozen=True)
class LabelScores:
    """What a version or an ensemble makes of a text.

    Attributes:
        best: index of the label that is the answer.
        num_prompt, num_cached: tokens before the answer, and those of them that did not have to be computed, summed
            over the members.
        members: what each member says by itself, in order.
    """

    best: int
    chances: LabelChances
    num_prompt: int
    num_cached: int
    members: tuple[LabelChances, ...]


class LabelScorer:
    """Scores labels as continuations of a text, through the engine."""

    def __init__(self, backbone: Backbone, engine: AsyncEngine, metrics: Metrics) -> None:
        self._tokenizer = backbone.tokenizer
        self._engine = engine
        self._metrics = metrics

        def make_plan(template: Template, answers: tuple[str, ...]) -> ScoringPlan:
            """Raises InvalidInput: two answers are the same to the tokenizer, or one is empty."""
            return engine.plan_scoring(encode_labels(backbone, template, answers))

        self._make_plan, self._keep_plan = make_plan, lru_cache(MAX_PLANS)(make_plan)

    def plan(self, target: Target) -> ScoringPlan:
        """How the target's own labels are scored. Raises as `make_plan`."""
        return self._keep_plan(target.input_template, target.labels)

    async def score(self, target: AnyTarget, text: str, call: Call, *, combine: Combine | None = None) -> LabelScores:
        """How likely each of the task's labels is; the members of an ensemble are asked in one batch."""
        found = await all_of(
            self._score_text(member, member.input_template, text, self.plan(member), call) for member in target.members
        )
        members = tuple(each.chances for each in found)
        best, together = target.combine_chances(members, combine)
        num_prompt, num_cached = sum(each.num_prompt for each in found), sum(each.num_cached for each in found)
        return LabelScores(best, together, num_prompt, num_cached, members)

    async def score_answers(
        self, target: Target, template: Template, text: str, answers: tuple[str, ...], call: Call
    ) -> LabelScores:
        """As `score`, of answers that are not the target's labels, so that nothing of them is kept."""
        return await self._score_text(target, template, text, self._make_plan(template, answers), call)

    async def _score_text(
        self, target: Target, template: Template, text: str, plan: ScoringPlan, call: Call
    ) -> LabelScores:
        token_ids = await target.encode(self._tokenizer, text, template)
        return await self.score_after(target, token_ids, plan, call)

    async def score_after(self, target: Target, token_ids: Sequence[int], plan: ScoringPlan, call: Call) -> LabelScores:
        """How likely each label of the plan is after the target's prompt and `token_ids`."""
        scoring = await self._score(target, token_ids, plan, call)
        chances = LabelChances.from_log_likelihoods(scoring.log_likelihoods, target.label_temperature)
        self._metrics.label_mass.observe(chances.mass)
        num_prompt = len(token_ids) + target.num_virtual_tokens
        num_cached = min(num_prompt, scoring.num_cached_tokens)
        return LabelScores(chances.best, chances, num_prompt, num_cached, members=(chances,))

    async def score_some(
        self, target: Target, token_ids: Sequence[int], continuations: Iterable[Sequence[int]], call: Call
    ) -> Scoring:
        """log P(continuation | prompt, text) of continuations that are not worth keeping a plan of."""
        return await self._score(target, token_ids, self._engine.plan_scoring(continuations), call)

    async def _score(self, target: Target, token_ids: Sequence[int], plan: ScoringPlan, call: Call) -> Scoring:
        text = EngineRequest(token_ids=token_ids, prompt=target.prompt, cache_salt=call.cache_salt, flow=target.flow)
        return await self._engine.score(text, plan, deadline_s=call.left_s)

    def num_sequences(self, target: AnyTarget) -> int:
        """Sequences that are with the engine at a time for one text."""
        return sum(self._engine.num_scored_at_once(self.plan(each).num_sequences) for each in target.members)

    def num_at_once(self, num_sequences: int) -> int:
        """How many texts of one call are with the engine at a time, if each takes `num_sequences` sequences."""
        return self._engine.num_at_once(num_sequences)
