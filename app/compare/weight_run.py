"""WeightRun: trains weights exactly as TuningRun trains prompts: with its objective, batches, schedule and choice."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from app.engine.threads.device_lease import run_to_end
from app.errors import InvalidInput, NumericalError
from app.measure.encoding import EncodedExample, shuffled_batches
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.tuning.plan import TuningPlan
from app.tuning.run.objective import Score, choose_objective
from app.tuning.run.population import make_optimizer
from app.tuning.run.rows import Chunker, RunRows


@dataclass(frozen=True, eq=False)
class TrainableCopy:
    """A copy of the backbone whose weights, or low-rank updates of them, are learned.

    Attributes:
        backbone: the resident one in all but its model, which is a copy.
        parameters: what is trained; float32 on a backbone of any dtype, as a prompt is.
        save: writes what would be kept of the task into a folder.
    """

    backbone: Backbone
    parameters: tuple[torch.nn.Parameter, ...]
    save: Callable[[Path], None]

    @classmethod
    def full(cls, backbone: Backbone) -> TrainableCopy:
        """All weights are trained; a whole checkpoint is stored."""
        model = copy.deepcopy(backbone.model).float().requires_grad_(True)
        return cls(replace(backbone, model=model), tuple(model.parameters()), model.save_pretrained)

    @classmethod
    def lora(cls, backbone: Backbone, rank: int, seed: int) -> TrainableCopy:
        """Updates of `rank` for every linear layer but the output's, scaled by 2; a PEFT checkpoint is stored.

        Args: seed: of the updates' first factors; the second ones start at zero.
        """
        import peft

        config = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 calls transformers by old names
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(copy.deepcopy(backbone.model), config)
        adapted.eval()
        trained = tuple(parameter for parameter in adapted.parameters() if parameter.requires_grad)
        if not trained:
            raise InvalidInput("peft finds no linear layer in this backbone", param="methods")
        for parameter in trained:
            parameter.data = parameter.data.float()
        save = lambda folder: adapted.save_pretrained(folder, save_embedding_layers=False)  # noqa: E731
        return cls(replace(backbone, model=adapted.get_base_model()), trained, save)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)

    def state(self) -> list[torch.Tensor]:
        """The present values, copied."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self, state: list[torch.Tensor]) -> None:
        for parameter, values in zip(self.parameters, state, strict=True):
            parameter.copy_(values)


@dataclass(frozen=True, eq=False)
class BestWeights:
    """The state that did best on validation. Attributes: step: updates done when it was measured."""

    state: list[torch.Tensor]
    step: int
    score: Score


class WeightRun:
    """Call `run` once; the copy then holds the state that did best on validation.

    Args: plan: its `config` gives learning rate, updates and seed.
    """

    def __init__(self, trained: TrainableCopy, plan: TuningPlan) -> None:
        self.trained = trained
        self.config = plan.config
        self._rows = RunRows.of(trained.backbone, plan)
        self._objective = choose_objective(trained.backbone, plan, self._rows.train)
        self._chunker = Chunker(
            max_rows=min(plan.config.micro_batch_size, self._objective.max_rows),
            num_extra_tokens=self._objective.num_extra_tokens,
        )
        self._optimizer = make_optimizer(plan.config, trained.parameters)
        self._best: BestWeights | None = None
        self.num_steps = plan.config.num_steps(len(self._rows.train))

    @property
    def best(self) -> BestWeights:
        """Raises NumericalError: nothing finite was ever measured."""
        if self._best is None:
            raise NumericalError("the backbone's answers are not finite even before tuning")
        return self._best

    def run(self) -> None:
        """Ends early only when a loss is not finite. Raises NumericalError."""
        order = torch.Generator().manual_seed(self.config.seed)
        batches = shuffled_batches(self._rows.train, self.config.rows_per_update, order, balance=self.config.balance)
        every = self.config.num_steps_between_evals(self.num_steps)
        self._measure(0)
        for step, indexes in enumerate(islice(batches, self.num_steps)):
            if not self.update([self._rows.train[i] for i in indexes], step):
                break
            if (step + 1) % every == 0 or step + 1 == self.num_steps:
                self._measure(step + 1)
        self.trained.restore(self.best.state)

    def update(self, rows: Sequence[EncodedExample], step: int) -> bool:
        """One update, unless its loss or a gradient is not finite; returns whether it was done."""
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for chunk in self._chunker.chunks(rows, 1):
            losses = self._objective.loss_per_row(PromptPrefix(), chunk)
            loss = losses.sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters, self.config.max_grad_norm or math.inf)
        if not math.isfinite(total) or not math.isfinite(norm):
            return False
        self._optimizer.param_groups[0]["lr"] = self.config.learning_rate_at(step, self.num_steps)
        self._optimizer.step()
        return True

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        figures: dict[int, torch.Tensor] = {}
        for chunk in self._chunker.chunks(self._rows.validation, 1):
            judged = run_to_end(self._objective.judge(PromptPrefix(), chunk))
            figures |= {row: values for (row, _), values in zip(chunk.places, judged, strict=True)}
        score = self._objective.score(torch.stack([figures[row] for row in range(len(figures))]))
        if score.is_finite and (self._best is None or score.rank > self._best.score.rank):
            self._best = BestWeights(self.trained.state(), step, score)
