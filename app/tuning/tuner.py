"""Tuner: learns the rows of a soft prompt in front of a frozen backbone (Lester et al. 2021).

The rows are the only parameters. They are float32 on a backbone of any dtype, and are learned in units of their natural
size (the vocabulary's embeddings, or a layer's keys), so learning rates and norms mean the same on every backbone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.errors import InvalidInput, NumericalError
from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Init, OptimizerKind, TuneConfig
from app.tuning.dataset import Example, check_labels
from app.tuning.encoding import EncodedExample, encode_examples, shuffled_batches
from app.tuning.events import Evaluated, OnEvent, StepDone, TuningStarted, TuningStopped, ignore_event
from app.tuning.forward import Prefix
from app.tuning.initialisation import embedding_rms, initial_rows, kv_rms
from app.tuning.objective import Objective, Score, choose_objective


@dataclass(frozen=True)
class TunedPrompt:
    """What one run found.

    Attributes:
        prompt: the best by validation.
        initial: where it started: the prompt's rows, float32 on CPU.
        best_step: updates done when it was measured; 0 is the initialisation.
        history: every measurement on validation, in order.
        num_steps: updates done in all.
        stop_reason: "finished", "patience", "not finite" or "stopped".
    """

    prompt: TaskPrompt
    initial: torch.Tensor
    best_step: int
    history: tuple[Evaluated, ...]
    num_steps: int
    stop_reason: str


class Tuner:
    """One run of tuning: made for one backbone, template and label set, used once.

    Args:
        labels: every target is one of them; empty when the task is to write text.
        should_stop: asked after every update; what is best so far is kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: TuneConfig,
        *,
        template: Template,
        labels: Sequence[str] = (),
        on_event: OnEvent = ignore_event,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._backbone = backbone
        self._config = config
        self._template = template
        self._labels = tuple(labels)
        self._on_event = on_event
        self._should_stop = should_stop
        self._history: list[Evaluated] = []

    def fit(
        self, train: Sequence[Example], validation: Sequence[Example], *, init_prompt: TaskPrompt | None = None
    ) -> TunedPrompt:
        """Args: init_prompt: belongs to init "prompt".

        Raises:
            InvalidInput: a target that is no label or too long, a prompt that leaves no room for text.
            NumericalError: nothing finite was ever measured.
        """
        train_rows = self._encode("train", train)
        validation_rows = self._encode("validation", _spread(validation, self._config.max_validation_rows))
        initial, self._unit = self._start(train_rows, init_prompt)
        objective = choose_objective(self._backbone, self._template, self._labels, train_rows, self._config)
        num_steps = self._config.num_steps(len(train_rows))
        self._on_event(TuningStarted(num_steps, len(train_rows), len(validation_rows), initial.numel()))
        best, step, reason = self._descend(initial, objective, train_rows, validation_rows, num_steps)
        self._on_event(TuningStopped(step, reason, best.step))
        make = TaskPrompt.from_kv if self._config.kind is PromptKind.KV else TaskPrompt.from_embeddings
        prompt = make(best.rows, self._backbone.fingerprint)
        return TunedPrompt(prompt, initial.cpu(), best.step, tuple(self._history), step, reason)

    def _start(
        self, train: Sequence[EncodedExample], init_prompt: TaskPrompt | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The initial rows, float32, and their unit, which broadcasts over them."""
        backbone, config = self._backbone, self._config
        rows = initial_rows(
            backbone, config, labels=self._labels, template=self._template, train=train, init_prompt=init_prompt
        )
        if config.kind is PromptKind.EMBEDDINGS:
            return rows, torch.tensor(embedding_rms(backbone), device=backbone.device)
        if config.init is not Init.PROMPT:
            with torch.no_grad():
                rows = Prefix.of_embeddings(backbone, rows[None]).kv_rows()[0].float()
        return rows, kv_rms(backbone, rows)

    def _descend(
        self,
        initial: torch.Tensor,
        objective: Objective,
        train: list[EncodedExample],
        validation: list[EncodedExample],
        num_steps: int,
    ) -> tuple[_Best, int, str]:
        """The best rows, the updates done and why they ended."""
        config, started = self._config, time.monotonic()
        scaled = torch.nn.Parameter(initial / self._unit)
        optimizer = _make_optimizer(config, scaled)
        order = torch.Generator().manual_seed(config.seed)
        batches = shuffled_batches(train, config.batch_size, order)
        eval_every = config.num_steps_between_evals(num_steps)
        best = self._measure(scaled, objective, validation, 0, None)
        if best is None:
            raise NumericalError("the backbone's answers are not finite even before tuning")
        num_worse = 0
        for step in range(1, num_steps + 1):
            learning_rate = config.learning_rate_at(step - 1, num_steps)
            loss = self._update(scaled, optimizer, objective, [train[i] for i in next(batches)], learning_rate)
            if not math.isfinite(loss):
                return best, step, "not finite"
            self._on_event(StepDone(step, num_steps, loss, learning_rate, time.monotonic() - started))
            if step % eval_every == 0 or step == num_steps:
                better = self._measure(scaled, objective, validation, step, best)
                num_worse = 0 if better else num_worse + 1
                best = better or best
            if config.patience and num_worse >= config.patience:
                return best, step, "patience"
            if self._should_stop():
                return best, step, "stopped"
        return best, num_steps, "finished"

    def _update(
        self,
        scaled: torch.nn.Parameter,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        rows: list[EncodedExample],
        learning_rate: float,
    ) -> float:
        """One update; the mean loss of its rows, and no update when that is not finite."""
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(rows), self._config.micro_batch_size):
            part = rows[start : start + self._config.micro_batch_size]
            prefix = Prefix.of_rows(self._backbone, self._config.kind, (scaled * self._unit)[None])
            loss = objective.loss_per_row(prefix, part).sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_([scaled], self._config.max_grad_norm or math.inf)
        if not math.isfinite(total) or not bool(norm.isfinite()):
            return math.nan
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        return total

    def _measure(
        self,
        scaled: torch.nn.Parameter,
        objective: Objective,
        validation: list[EncodedExample],
        step: int,
        best: _Best | None,
    ) -> _Best | None:
        """The new best, or None when this measurement is no better or not finite."""
        with torch.no_grad():
            rows = scaled.detach() * self._unit
            prefix = Prefix.of_rows(self._backbone, self._config.kind, rows[None])
            score = objective.measure(prefix, validation, self._config.micro_batch_size)
        is_best = score.is_finite and (best is None or score.rank > best.score.rank)
        event = Evaluated(step, score.metric, score.value, is_best)
        self._history.append(event)
        self._on_event(event)
        return _Best(rows, step, score) if is_best else None

    def _encode(self, name: str, examples: Sequence[Example]) -> list[EncodedExample]:
        config = self._config
        if not examples:
            raise InvalidInput(f"{name} has no examples", param=name)
        if self._labels:
            check_labels(examples, self._labels, name)
        room = self._backbone.max_model_len - config.num_virtual_tokens - config.max_target_tokens
        if room < 1:
            raise InvalidInput(
                f"num_virtual_tokens and max_target_tokens leave no room in {self._backbone.max_model_len} positions",
                param="num_virtual_tokens",
            )
        return encode_examples(
            self._backbone,
            self._template,
            examples,
            max_input_tokens=min(room, config.max_input_tokens or room),
            max_target_tokens=config.max_target_tokens,
        )


@dataclass(frozen=True)
class _Best:
    rows: torch.Tensor
    step: int
    score: Score


def _spread(examples: Sequence[Example], num: int) -> list[Example]:
    """At most `num` examples at equal distances: files are often sorted by label."""
    if len(examples) <= num:
        return list(examples)
    return [examples[i * len(examples) // num] for i in range(num)]


def _make_optimizer(config: TuneConfig, scaled: torch.nn.Parameter) -> torch.optim.Optimizer:
    if config.optimizer is OptimizerKind.ADAFACTOR:
        return torch.optim.Adafactor([scaled], lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW([scaled], lr=config.learning_rate, weight_decay=config.weight_decay)
