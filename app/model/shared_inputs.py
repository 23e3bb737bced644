"""group_by_input: linear layers that a model gives the same input, found by watching it compute two tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Seen = dict[tuple[int, int, bool], list[nn.Linear]]


@torch.no_grad()
def group_by_input(model: nn.Module, layers: Sequence[nn.Linear]) -> list[list[nn.Linear]]:
    """Each layer in one group, in the order of their calls.

    Layers belong together that were given the very same tensor, unchanged in between, and all have a bias or none has.
    One that was called not at all, or more than once, stays alone.
    """
    inputs: list[torch.Tensor] = []  # kept, so that no two tensors have the same id
    calls: list[tuple[tuple[int, int, bool], nn.Linear]] = []

    def watch(layer: nn.Linear) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.append(arguments[0])
            calls.append(((id(arguments[0]), arguments[0]._version, layer.bias is not None), layer))

        return note

    handles = [layer.register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        model(input_ids=torch.zeros((1, 2), dtype=torch.int64), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    called = [layer for _, layer in calls]
    seen: Seen = {}
    for key, layer in calls:
        if called.count(layer) == 1:
            seen.setdefault(key, []).append(layer)
    grouped = list(seen.values())
    together = {id(layer) for group in grouped for layer in group}
    return grouped + [[layer] for layer in layers if id(layer) not in together]
