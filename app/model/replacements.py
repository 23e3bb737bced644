"""Replacements: a model's modules computed by other code for as long as a step takes, the model unmodified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

Forward = Callable[..., torch.Tensor]


class Replacements:
    """What computes modules in place of their own `forward` while a step runs; none by default.

    Attributes:
        module_to_forward: each module and its replacement.
    """

    def __init__(self, module_to_forward: Mapping[nn.Module, Forward] | None = None) -> None:
        self.module_to_forward = dict(module_to_forward or {})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the modules compute with their replacements; no gradient may be wanted there."""
        assert not torch.is_grad_enabled()
        for module, forward in self.module_to_forward.items():
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module in self.module_to_forward:
                del module.__dict__["forward"]
