"""Replacements: a model's modules computed by other code for as long as a step takes, the model unmodified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

Forward = Callable[..., torch.Tensor]


class Replacements:
    """What computes modules in place of their own `forward` while a step runs; none by default.

    Only in the thread that runs the step: others, such as one that looks into a prompt, compute with the modules' own.

    Attributes:
        module_to_forward: each module and its replacement.
    """

    def __init__(self, module_to_forward: Mapping[nn.Module, Forward] | None = None) -> None:
        self.module_to_forward = dict(module_to_forward or {})
        self._thread: int | None = None
        self._calls = [(module, self._call(module, forward)) for module, forward in self.module_to_forward.items()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the modules compute with their replacements; no gradient may be wanted there."""
        assert not torch.is_grad_enabled()
        self._thread = get_ident()
        for module, call in self._calls:
            module.__dict__["forward"] = call
        try:
            yield
        finally:
            for module, _ in self._calls:
                module.__dict__.pop("forward", None)  # another engine's thread may have been faster

    def _call(self, module: nn.Module, forward: Forward) -> Forward:
        plain = type(module).forward

        def call(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if get_ident() == self._thread else plain(module, *args, **kwargs)

        return call
