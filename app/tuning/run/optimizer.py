"""The optimizer that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.tuning.config import OptimizerKind, TuneConfig


def make_optimizer(config: TuneConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """With torch's defaults for everything but the learning rate and the weight decay."""
    kind = torch.optim.Adafactor if config.optimizer is OptimizerKind.ADAFACTOR else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
