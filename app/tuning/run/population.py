"""Population: prompts that are trained side by side, each with its own parameters, optimizer and best state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import Any

import torch

from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import TaskPrompt
from app.tuning.config import OptimizerKind, TuneConfig
from app.tuning.run.objective import Score
from app.tuning.search import MAX_MEMBERS

OPTIMIZER = "optimizer."


def make_optimizer(config: TuneConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """With torch's defaults for everything but the learning rate and the weight decay."""
    kind = torch.optim.Adafactor if config.optimizer is OptimizerKind.ADAFACTOR else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@dataclass(frozen=True, eq=False)
class BestState:
    """The state of a member that did best on validation.

    Attributes:
        rows: (num_virtual_tokens, width of the kind) float32.
        step: updates done when it was measured; 0 is the start.
    """

    rows: torch.Tensor
    step: int
    score: Score


class Member:
    """One prompt being learned.

    Attributes:
        number: its place in the population, which never changes.
        initial: (num_virtual_tokens, width of the kind) float32.
        unit: factor of the learned numbers; broadcasts over the rows.
        scaled: the parameter: the rows, in that unit.
        is_alive: whether it is still trained.
    """

    def __init__(self, number: int, config: TuneConfig, initial: torch.Tensor, unit: torch.Tensor) -> None:
        self.number = number
        self.config = config
        self.initial = initial
        self.unit = unit
        self.scaled = torch.nn.Parameter(initial / unit)
        self.optimizer = make_optimizer(config, [self.scaled])
        self.best: BestState | None = None
        self.is_alive = True

    @property
    def rows(self) -> torch.Tensor:
        """Differentiable."""
        return self.scaled * self.unit

    @property
    def has_finite_gradient(self) -> bool:
        return self.scaled.grad is not None and bool(self.scaled.grad.isfinite().all())

    def update(self, step: int, num_steps: int) -> None:
        """One update from the present gradients. Args: step: 0 for the first."""
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([self.scaled], self.config.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate_at(step, num_steps)
        self.optimizer.step()

    def keep_if_best(self, score: Score, step: int) -> bool:
        """Keep the present state if it is the member's best. Returns whether it is."""
        is_better = score.is_finite and (self.best is None or score.rank > self.best.score.rank)
        if is_better:
            self.best = BestState(self.rows.detach().clone(), step, score)
        return is_better

    @property
    def best_rank(self) -> tuple[float, ...]:
        return self.best.score.rank if self.best else (-math.inf,)

    def best_prompt(self, backbone: Backbone) -> TaskPrompt:
        """Its best state as a prompt; it must have been measured."""
        assert self.best is not None
        return TaskPrompt.from_rows(self.config.kind, self.best.rows, backbone.fingerprint)

    def record(self) -> dict[str, Any]:
        """What a saved run keeps of it, next to `tensors`."""
        best = self.best and {"step": self.best.step, "score": asdict(self.best.score)}
        return {"is_alive": self.is_alive, "best": best}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies on CPU."""
        named = {"initial": self.initial, "unit": self.unit, "scaled": self.scaled}
        named |= {f"{OPTIMIZER}{name}": value for name, value in self.optimizer.state[self.scaled].items()}
        if self.best is not None:
            named["best"] = self.best.rows
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the saved values, bit for bit."""
        on_device = {name: tensor.to(self.scaled.device, copy=True) for name, tensor in tensors.items()}
        self.initial, self.unit, self.scaled.data = (on_device[name] for name in ("initial", "unit", "scaled"))
        self.optimizer.state[self.scaled] = {
            name.removeprefix(OPTIMIZER): tensor.cpu() if name == f"{OPTIMIZER}step" else tensor
            for name, tensor in on_device.items()
            if name.startswith(OPTIMIZER)
        }
        self.is_alive = record["is_alive"]
        if record["best"] is not None:
            score = Score(**record["best"]["score"] | {"rank": tuple(record["best"]["score"]["rank"])})
            self.best = BestState(on_device["best"], record["best"]["step"], score)


class Population:
    """All members of a run, and the keys and values of those alive, computed in as few forwards as possible."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.members: list[Member] = []

    @property
    def alive(self) -> list[Member]:
        """In the order that `prompt_index` counts: those of one kind and length stand together."""
        return sorted((member for member in self.members if member.is_alive), key=_shape)

    @property
    def leader(self) -> Member | None:
        """The member with the best state of all, alive or not."""
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> list[Member]:
        """Those that were measured, alive or not, by their best states."""
        measured = [member for member in self.members if member.best is not None]
        return sorted(measured, key=lambda member: member.best_rank, reverse=True)

    def prefixes(self, max_tokens: int | None) -> Iterator[PromptPrefix]:
        """Of all members alive, differentiable, to be stacked; each is one forward of at most `max_tokens` tokens."""
        for (_, length), group in groupby(self.alive, key=_shape):
            size = MAX_MEMBERS if max_tokens is None else max(1, max_tokens // length)
            while members := list(islice(group, size)):
                rows = torch.stack([member.rows for member in members])
                yield PromptPrefix.of_rows(self._backbone, members[0].config.kind, rows)

    def clear_gradients(self) -> None:
        for member in self.members:
            member.scaled.grad = None


def _shape(member: Member) -> tuple[str, int]:
    return member.config.kind.value, member.config.num_virtual_tokens
