"""WeightRun: trains a copy's weights exactly as TuningRun trains prompts: objective, batches, schedule, choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from app.compare.trainable_copy import TrainableCopy
from app.engine.threads.slices import run_to_end
from app.errors import NumericalError
from app.measure.encoding import EncodedExample, shuffled_batches
from app.model.prompted_forward import PromptPrefix
from app.tuning.plan import TuningPlan
from app.tuning.run.chunks import Chunker
from app.tuning.run.objective import Score, choose_objective
from app.tuning.run.optimizer import make_optimizer
from app.tuning.run.rows import RunRows


@dataclass(frozen=True, eq=False)
class Best:
    """The state that did best on validation. Attributes: step: updates done when it was measured."""

    state: list[torch.Tensor]
    step: int
    score: Score


class WeightRun:
    """Call `run` once; the copy then holds the state that did best on validation.

    Args:
        plan: its `config` says learning rate, updates and seed.
    """

    def __init__(self, copy: TrainableCopy, plan: TuningPlan) -> None:
        self.copy = copy
        self.config = plan.config
        self._rows = RunRows.of(copy.backbone, plan)
        self._objective = choose_objective(copy.backbone, plan, self._rows.train)
        self._chunker = Chunker(
            max_rows=min(plan.config.micro_batch_size, self._objective.max_rows),
            num_extra_tokens=self._objective.num_extra_tokens,
        )
        self._optimizer = make_optimizer(plan.config, copy.parameters)
        self._best: Best | None = None
        self.num_steps = plan.config.num_steps(len(self._rows.train))

    @property
    def best(self) -> Best:
        """Raises NumericalError: nothing finite was ever measured."""
        if self._best is None:
            raise NumericalError("the backbone's answers are not finite even before tuning")
        return self._best

    def run(self) -> None:
        """Ends early only when a loss is not finite. Raises NumericalError."""
        order = torch.Generator().manual_seed(self.config.seed)
        batches = shuffled_batches(self._rows.train, self.config.batch_size, order, balance=self.config.balance)
        every = self.config.num_steps_between_evals(self.num_steps)
        self._measure(0)
        for step, indexes in enumerate(islice(batches, self.num_steps)):
            if not self._update([self._rows.train[i] for i in indexes], step):
                break
            if (step + 1) % every == 0 or step + 1 == self.num_steps:
                self._measure(step + 1)
        self.copy.restore(self.best.state)

    def _update(self, rows: Sequence[EncodedExample], step: int) -> bool:
        """One update, unless its loss or a gradient is not finite; whether it was done."""
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for chunk in self._chunker.chunks(rows, 1):
            loss = self._objective.loss_per_row(PromptPrefix.empty(), chunk.rows, chunk.prompt_index).sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.copy.parameters, self.config.max_grad_norm or math.inf)
        if not math.isfinite(total) or not math.isfinite(norm):
            return False
        self._optimizer.param_groups[0]["lr"] = self.config.learning_rate_at(step, self.num_steps)
        self._optimizer.step()
        return True

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        figures: dict[int, torch.Tensor] = {}
        for chunk in self._chunker.chunks(self._rows.validation, 1):
            judged = run_to_end(self._objective.judge(PromptPrefix.empty(), chunk.rows, chunk.prompt_index))
            figures |= {row: values for (row, _), values in zip(chunk.places, judged, strict=True)}
        score = self._objective.score(torch.stack([figures[row] for row in range(len(figures))]))
        if score.is_finite and (self._best is None or score.rank > self._best.score.rank):
            self._best = Best(self.copy.state(), step, score)
