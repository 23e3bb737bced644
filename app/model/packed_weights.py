"""PackedWeights: a second copy of a model's linear layers, in the layout that oneDNN multiplies with.

`torch.nn.functional.linear` gets every weight row by row and brings it into its kernel's layout anew in each call. A
weight that never changes can be brought there once, as torch's inductor does when it freezes a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

NUM_BUCKETS = 10
"""Numbers of rows up to 1, 2, 4 ... 512 are told apart; more are taken for 512."""
PACKED_FOR_ROWS = 64
"""oneDNN's layout is that of a product with so many rows; others are multiplied with it as it is."""


class PackedLinear:
    """The `forward` of one linear layer at inference, on the packed copy of its weight where that is faster.

    Attributes:
        linear: the layer itself, which stays as it is.
        is_faster: for each bucket of numbers of rows, whether the packed copy is to be used.
    """

    __slots__ = ("_bias", "_multiply", "_weight", "is_faster", "linear")

    def __init__(self, linear: nn.Linear, is_faster: Sequence[bool] = (True,) * NUM_BUCKETS) -> None:
        self.linear = linear
        self.is_faster = is_faster
        self._bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_FOR_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features). Where gradients may be wanted, the layer's own product."""
        if torch.is_inference_mode_enabled() and self.is_faster[bucket(inputs.numel() // inputs.shape[-1])]:
            return self.multiply(inputs)
        return self.multiply_plainly(inputs)

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self._multiply(inputs, self._weight, self._bias, "none", [], "")
        return product

    def multiply_plainly(self, inputs: torch.Tensor) -> torch.Tensor:
        """The reference."""
        return F.linear(inputs, self.linear.weight, self.linear.bias)

    @property
    def num_bytes(self) -> int:
        """What the packed copy takes."""
        return self.linear.weight.nbytes


class PackedWeights:
    """Packed linear layers of one model, which takes them inside `with packed_weights.in_place()` only.

    Args:
        layers: none, and the model computes as it is.
    """

    def __init__(self, layers: Sequence[PackedLinear] = ()) -> None:
        self.layers = tuple(layers)

    @classmethod
    def everywhere(cls, model: nn.Module) -> PackedWeights:
        """Every layer that can be packed, used for every number of rows: for tests and measurements."""
        return cls([PackedLinear(linear) for linear in packable_layers(model)])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the packed copies, in inference mode; its parameters and classes do not change.

        Another thread may use the model meanwhile: where gradients may be wanted, all is as ever.
        """
        for layer in self.layers:
            layer.linear.__dict__["forward"] = layer  # `__setattr__` of a module takes twenty times as long
        try:
            yield
        finally:
            for layer in self.layers:
                layer.linear.__dict__.pop("forward", None)

    @property
    def num_bytes(self) -> int:
        """What all copies take."""
        return sum(layer.num_bytes for layer in self.layers)


def bucket(num_rows: int) -> int:
    """0 for one row, 1 for two, 2 for up to four, 3 for up to eight and so on."""
    return min(max(num_rows - 1, 0).bit_length(), NUM_BUCKETS - 1)


def packable_layers(model: nn.Module) -> list[nn.Linear]:
    """Linear layers of the model that this torch and this CPU can pack: float32, or bfloat16 where the CPU has it."""
    if not torch.backends.mkldnn.is_available():
        return []
    dtypes = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.add(torch.bfloat16)
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype in dtypes
        and "forward" not in module.__dict__  # somebody else's already
    ]
