"""The opening of a run with a budget: which of a few written prompts to start from, and with which template."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from app.engine.threads.device_lease import Slices
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import PromptKind
from app.tuning.budget import OPENING_SHARE
from app.tuning.config import Metric
from app.tuning.plan import TuningPlan, WrittenPrompt
from app.tuning.run.objective import Objective, Score, choose_objective
from app.tuning.run.population import text_rows
from app.tuning.run.rows import Chunk, Chunker, encode_rows, spread
from app.tuning.run.timetable import Clock

MAX_ROWS: Final = 200
BLOCK_SIZE: Final = 8
"""Rows after which all candidates have been asked the same."""


@dataclass(frozen=True)
class Opened:
    """Attributes: number: of the written prompt that did best. scores: of each of them, on `num_rows` rows."""

    number: int
    scores: tuple[Score, ...]
    num_rows: int

    def record(self) -> dict[str, Any]:
        return {"number": self.number, "num_rows": self.num_rows, "scores": [vars(score) for score in self.scores]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Opened:
        scores = tuple(Score(**{**score, "rank": tuple(score["rank"])}) for score in record["scores"])
        return cls(record["number"], scores, record["num_rows"])

    def apply(self, plan: TuningPlan) -> TuningPlan:
        """The plan with the template of the best."""
        return replace(plan, template=plan.written[self.number].template)


class Opening:
    """Asks every written prompt of the plan for the same validation rows, a block at a time, while there is time.

    Args:
        slice_s: seconds that a forward should take; None sets no bound.
        clock: monotonic seconds.
    """

    def __init__(self, backbone: Backbone, plan: TuningPlan, *, slice_s: float | None, clock: Clock) -> None:
        self._backbone = backbone
        self._plan = replace(plan, config=replace(plan.config, metric=plan.metric if plan.labels else Metric.LOSS))
        self._slice_s = slice_s
        self._clock = clock
        self._max_rows = BLOCK_SIZE if slice_s is None else 1
        self.opened: Opened | None = None

    @torch.no_grad()
    def slices(self) -> Iterator[None]:
        """Sets `opened` at the end. Raises InvalidInput: an example cannot be encoded."""
        examples = spread(self._plan.validation, MAX_ROWS)
        random.Random(0).shuffle(examples)  # noqa: S311  an order, no secret
        askings = []
        for written in self._plan.written:
            askings.append(_Asking.of(self._backbone, self._plan, written))
            yield
        ends_s = self._clock() + OPENING_SHARE * self._plan.config.budget_s
        num_rows = 0
        while num_rows < len(examples) and (not num_rows or self._clock() < ends_s):
            block = examples[num_rows : num_rows + BLOCK_SIZE]
            for asking in askings:
                rows = encode_rows(self._backbone, asking.plan, block)
                yield from self._ask(asking, rows)
            num_rows += len(block)
        scores = tuple(asking.objective.score(torch.cat(asking.figures)) for asking in askings)
        best = max(range(len(scores)), key=lambda number: scores[number].rank)
        self.opened = Opened(best, scores, num_rows)

    def _ask(self, asking: _Asking, rows: Sequence[EncodedExample]) -> Slices[None]:
        for chunk in Chunker(max_rows=self._max_rows, num_extra_tokens=0).chunks(rows, 1):
            began_s = time.perf_counter()
            figures = yield from asking.objective.judge(asking.prefix, chunk)
            asking.figures.append(figures)
            self._adapt(chunk, time.perf_counter() - began_s)

    def _adapt(self, chunk: Chunk, took_s: float) -> None:
        """More rows a forward as long as a slice has room for twice as many."""
        if self._slice_s is not None and took_s < self._slice_s / 2 and len(chunk.rows) == self._max_rows:
            self._max_rows = min(BLOCK_SIZE, 2 * self._max_rows)


@dataclass(eq=False)
class _Asking:
    """One written prompt, and what it answered so far."""

    plan: TuningPlan
    objective: Objective
    prefix: PromptPrefix
    figures: list[torch.Tensor]

    @classmethod
    def of(cls, backbone: Backbone, plan: TuningPlan, written: WrittenPrompt) -> _Asking:
        plan = replace(plan, template=written.template)
        rows = encode_rows(backbone, plan, spread(plan.validation, BLOCK_SIZE))
        objective = choose_objective(backbone, plan, rows)
        prefix = PromptPrefix.of_embeddings(backbone, text_rows(backbone, PromptKind.KV, written.text)[None])
        return cls(plan, objective, prefix, [])
