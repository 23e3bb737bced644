"""PackedWeights: a second copy of a model's linear layers, in the layout that oneDNN multiplies with.

`torch.nn.functional.linear` gets every weight row by row and brings it into its kernel's layout anew in each call. A
weight that never changes can be brought there once, as torch's inductor does when it freezes a model; and layers that
are given the same input, such as queries, keys and values, can be multiplied at once.
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


class PackedGroup:
    """Linear layers that are given the same input, and one packed copy of all their weights; mostly one layer.

    Attributes:
        layers: the layers themselves, in the order in which the model calls them. They stay as they are.
        is_faster: for each bucket of numbers of rows, whether the packed copy is to be used.
    """

    def __init__(self, layers: Sequence[nn.Linear], is_faster: Sequence[bool] = (True,) * NUM_BUCKETS) -> None:
        self.layers = tuple(layers)
        self.is_faster = is_faster
        self._widths = [layer.out_features for layer in layers]
        weights = [layer.weight.detach() for layer in layers]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(whole, PACKED_FOR_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._pending: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None

    def multiply(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(..., in_features) to (..., out_features) of each layer, which are views of one product."""
        product: torch.Tensor = self._multiply(inputs, self._weight, self._bias, "none", [], "")
        return (product,) if len(self._widths) == 1 else product.split(self._widths, -1)

    def multiply_plainly(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The reference."""
        return tuple(F.linear(inputs, layer.weight, layer.bias) for layer in self.layers)

    def forward(self, place: int, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer at this place computes. Where gradients may be wanted, that is its own product."""
        layer = self.layers[place]
        num_rows = inputs.numel() // max(1, inputs.shape[-1])
        if not (torch.is_inference_mode_enabled() and self.is_faster[bucket(num_rows)]):
            return F.linear(inputs, layer.weight, layer.bias)
        if len(self.layers) == 1:
            return self.multiply(inputs)[0]
        pending = self._pending
        if pending is None or pending[0] is not inputs:
            pending = self._pending = (inputs, self.multiply(inputs))
        if place == len(self.layers) - 1:
            self._pending = None
        return pending[1][place]

    def forget(self) -> None:
        """Let go of what was computed and not asked for."""
        self._pending = None

    @property
    def num_bytes(self) -> int:
        """What the packed copy takes."""
        return sum(layer.weight.nbytes for layer in self.layers)


class _Member:
    """Stands in for the `forward` of one layer of a group."""

    __slots__ = ("_forward", "_place")

    def __init__(self, group: PackedGroup, place: int) -> None:
        self._forward, self._place = group.forward, place

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._forward(self._place, inputs)


class PackedWeights:
    """Packed linear layers of one model, which takes them inside `with packed_weights.in_place()` only.

    Args:
        groups: none, and the model computes as it is.
    """

    def __init__(self, groups: Sequence[PackedGroup] = ()) -> None:
        self.groups = tuple(groups)
        self._members = [(layer, _Member(group, i)) for group in groups for i, layer in enumerate(group.layers)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the packed copies, in inference mode; its parameters and classes do not change.

        Another thread may use the model meanwhile: where gradients may be wanted, all is as ever.
        """
        for layer, member in self._members:
            layer.__dict__["forward"] = member  # a module's own `__setattr__` takes many times as long
        try:
            yield
        finally:
            for layer, _ in self._members:
                layer.__dict__.pop("forward", None)
            for group in self.groups:
                group.forget()

    @property
    def num_layers(self) -> int:
        return len(self._members)

    @property
    def num_bytes(self) -> int:
        """What all copies take."""
        return sum(group.num_bytes for group in self.groups)


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
