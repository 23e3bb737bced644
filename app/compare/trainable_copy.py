"""TrainableCopy: a copy of the backbone's model whose weights, or low-rank updates of them, are learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from app.errors import InvalidInput
from app.model.backbone import Backbone


@dataclass(frozen=True, eq=False)
class TrainableCopy:
    """Attributes:
    backbone: as the resident one in all but its model, which is a copy of its own.
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

        Args:
            seed: of the updates' first factors; the second ones start at zero.
        """
        import peft

        config = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(copy.deepcopy(backbone.model), config)
        adapted.eval()
        trained = tuple(parameter for parameter in adapted.parameters() if parameter.requires_grad)
        if not trained:
            raise InvalidInput("peft finds no linear layer in this backbone", param="methods")
        for parameter in trained:
            parameter.data = parameter.data.float()
        model = adapted.get_base_model()
        save = lambda folder: adapted.save_pretrained(folder, save_embedding_layers=False)  # noqa: E731
        return cls(replace(backbone, model=model), trained, save)

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
