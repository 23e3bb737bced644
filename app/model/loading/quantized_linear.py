"""QuantizedLinear: a linear layer whose weights are 8-bit integers, and quantize_linears, which puts them into a model.

Only weights are quantized: symmetric, with a scale for each output (as LLM.int8's weights, Dettmers et al. 2022);
what comes in and goes out keeps its type. The integers are the only copy, and everyone computes with the same ones:
engine, naive loop and tuner, which differentiates through them. In bfloat16 torch's products take them times their
scale, rounded once more; `multiply.c` takes the integers, which bfloat16 holds exactly, and scales the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from app.errors import InvalidInput

PANEL = 16
"""Outputs whose integers lie side by side: PANEL in multiply.c, which then has nothing to turn."""
MAX_INTEGER = 127


class QuantizedLinear(nn.Module):
    """What `nn.Linear` is, computed slowly: the integers are widened in every call. `multiply.c` is the fast way.

    Attributes:
        dtype: of what comes in and goes out.
        panels: (ceil(out_features / PANEL), in_features, PANEL) int8, zero for outputs that do not exist.
        scale: (out_features,) float32: what the integers of an output are times.
        bias: (out_features,), as the layer's own, or None.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.dtype = layer.weight.dtype
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1) / MAX_INTEGER
        integers = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
        padded = F.pad(integers, (0, 0, 0, -self.out_features % PANEL))
        panels = padded.view(-1, PANEL, self.in_features).transpose(1, 2).contiguous()
        self.panels = nn.Parameter(panels, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        output: torch.Tensor = _Product.apply(input, self)
        return output

    def dequantized(self) -> torch.Tensor:
        """(out_features, in_features): the integers times their scales, in the layer's dtype."""
        integers = self.panels.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]
        return (integers * self.scale[:, None]).to(self.dtype)


class _Product(torch.autograd.Function):
    """Input times weights, plus bias. They are widened again for the gradient, so that no graph keeps wide ones."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(rows, layer.dequantized(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantized(), None


def quantize_linears(model: PreTrainedModel) -> None:
    """Put a QuantizedLinear in the place of every `nn.Linear` of a model on a CPU.

    An output layer that shares its weights with the embedding gets integers of its own: a step reads all of them, but
    only a few rows of the embedding, where prompts begin and are compared, and which stays as it is.

    Raises: InvalidInput: there is none.
    """
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear
    ]
    if not places:
        raise InvalidInput(f"{model.config.model_type} has no linear layers that int8 is made of", param="quantize")
    for parent, name, layer in places:
        setattr(parent, name, QuantizedLinear(layer))
