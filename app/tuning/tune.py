"""From examples to a prompt ready to publish: the one function behind `softswap tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from app.model.backbone import Backbone
from app.model.layout import Template
from app.task_prompt import TaskPrompt
from app.tuning.config import TuneConfig
from app.tuning.dataset import Dataset, find_labels, hash_examples, split_examples
from app.tuning.evaluation import Evaluation, evaluate
from app.tuning.events import Evaluated, OnEvent, ignore_event
from app.tuning.tuner import TunedPrompt, Tuner


@dataclass(frozen=True)
class TuneResult:
    """What to publish, and what is known about it.

    Attributes:
        prompt: of kind embeddings.
        template, labels: belong to the prompt: it answers well to these only.
        validation: of the prompt, on all validation examples, with the label temperature fitted to them.
        tuned: the run: initial rows, history, why it ended.
        config: as asked for.
        data_hash: sha256 over training and validation examples.
        num_train, num_validation: examples.
    """

    prompt: TaskPrompt
    template: Template
    labels: tuple[str, ...]
    validation: Evaluation
    tuned: TunedPrompt
    config: TuneConfig
    data_hash: str
    num_train: int
    num_validation: int

    @property
    def metrics(self) -> dict[str, float]:
        """Names to publish: the validation metrics, each with `validation_` in front."""
        return {f"validation_{name}": value for name, value in self.validation.metrics.items()}

    @property
    def history(self) -> tuple[Evaluated, ...]:
        return self.tuned.history

    @property
    def provenance(self) -> dict[str, Any]:
        """How the prompt came to be, in JSON's types."""
        return {
            "method": "prompt_tuning",
            "config": asdict(self.config),
            "data_hash": self.data_hash,
            "num_train": self.num_train,
            "num_validation": self.num_validation,
            "num_steps": self.tuned.num_steps,
            "best_step": self.tuned.best_step,
            "stop_reason": self.tuned.stop_reason,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def tune_task(
    backbone: Backbone,
    train: Dataset,
    validation: Dataset | None,
    config: TuneConfig,
    *,
    template: Template | None = None,
    labels: Sequence[str] | None = None,
    init_prompt: TaskPrompt | None = None,
    on_event: OnEvent = ignore_event,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuneResult:
    """Tunes a prompt and measures it on validation; publishing it is the caller's.

    Args:
        validation: None sets 10 % of the training examples aside, by a hash of their inputs.
        template: None puts the target on a line after the input.
        labels: None finds them in the targets (`find_labels`); empty makes it a task that writes text.
        init_prompt: belongs to init "prompt".

    Raises: InvalidInput, NumericalError, as Tuner.fit.
    """
    if validation is None:
        train_examples, validation_examples = split_examples(train.examples)
    else:
        train_examples, validation_examples = list(train.examples), list(validation.examples)
    template = template or Template()
    chosen = find_labels([*train_examples, *validation_examples]) if labels is None else tuple(labels)
    tuner = Tuner(backbone, config, template=template, labels=chosen, on_event=on_event, should_stop=should_stop)
    tuned = tuner.fit(train_examples, validation_examples, init_prompt=init_prompt)
    measured = evaluate(
        backbone,
        tuned.prompt,
        template,
        chosen,
        validation_examples,
        max_input_tokens=config.max_input_tokens,
        max_new_tokens=config.max_target_tokens,
        batch_size=config.micro_batch_size,
        label_temperature=None,
    )
    return TuneResult(
        prompt=tuned.prompt,
        template=template,
        labels=chosen,
        validation=measured,
        tuned=tuned,
        config=config,
        data_hash=hash_examples([*train_examples, *validation_examples]),
        num_train=len(train_examples),
        num_validation=len(validation_examples),
    )
