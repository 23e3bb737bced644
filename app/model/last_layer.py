"""LastLayer: a model's last layer, computed only at the tokens whose logits are read.

What the last layer leaves at a token is seen by no other; only its keys and values are seen, and those come before
attention. So the layer is called twice: with all tokens, until their keys and values are there, and with the asked
tokens, which attend to those. The model's class is not touched; whether it computes the same is asked of the model
itself, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.model.loading.checkpoint import count_positions

MAX_RELATIVE_ERROR = 1e-3
MAX_RELATIVE_ERROR_OF_HALVES = 0.05

CACHE_ARGUMENTS = {"cache", "past_key_values"}
"""What layers call their cache: transformers from 5.24 on, and before."""

KeysValues = tuple[torch.Tensor, torch.Tensor]


class _Seen(Exception):
    """The keys and values of all tokens are there."""


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Attributes:
    layer: attention, feed-forward and what lies between.
    """

    layer: nn.Module

    @classmethod
    def find(cls, model: PreTrainedModel, num_layers: int) -> LastLayer | None:
        """None if the model's layers do not stand in one list, or do something of their own."""
        stacks = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers]
        stacks = [each for each in stacks if any(hasattr(part, "layer_idx") for part in each[-1].modules())]
        if len(stacks) != 1 or "forward" in stacks[0][-1].__dict__:
            return None
        found = cls(stacks[0][-1])
        return found if found._computes_the_same(model) else None

    @contextmanager
    def only_at(self, columns: torch.Tensor) -> Iterator[None]:
        """Within, the layer's output is that of the model at these columns, and 0 at others.

        Args: columns: (num_rows, num_asked) int64, of each row of what is put in, none named twice.
        """
        plain = self.layer.forward
        self.layer.__dict__["forward"] = lambda *args, **kwargs: _forward(plain, columns, *args, **kwargs)
        try:
            yield
        finally:
            del self.layer.__dict__["forward"]

    @torch.no_grad()
    def _computes_the_same(self, model: PreTrainedModel) -> bool:
        """Whether the model says the same in two rows, of which the second ends earlier and stands at the last
        positions: some layers look at those."""
        token_ids = torch.arange(3, 13, device=model.device).view(2, 5)
        is_real = torch.ones_like(token_ids)
        is_real[1, 4] = 0
        firsts = torch.tensor([[0], [max(0, count_positions(model.config) - 5)]], device=model.device)
        columns = torch.tensor([[4, 2], [3, 1]], device=model.device)
        inputs = {
            "input_ids": token_ids,
            "attention_mask": is_real,
            "position_ids": firsts + torch.arange(5, device=model.device),
            "use_cache": False,
            "logits_to_keep": columns,
        }
        wanted = model(**inputs).logits.float()
        try:
            with self.only_at(columns):
                found = model(**inputs).logits.float()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        limit = MAX_RELATIVE_ERROR if model.dtype.itemsize >= 4 else MAX_RELATIVE_ERROR_OF_HALVES
        return float((found - wanted).norm() / wanted.norm().clamp(min=1e-6)) <= limit


def _forward(plain: Callable[..., torch.Tensor], columns: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What stands in for the layer's own `forward`, which is `plain`."""
    bound = inspect.signature(plain).bind(*args, **kwargs)
    inputs = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    inputs.pop("kwargs", None)
    hidden: torch.Tensor = inputs.pop("hidden_states")
    keys_values = _keys_values(plain, hidden, inputs)
    if columns.shape[1] == 0:
        return torch.zeros_like(hidden)
    asked = plain(pick(hidden, columns), **_only_at(inputs, columns, hidden.shape[1]), meet=lambda *_: keys_values)
    return torch.zeros_like(hidden).scatter(1, columns[..., None].expand_as(asked), asked)


def _keys_values(plain: Callable[..., torch.Tensor], hidden: torch.Tensor, inputs: dict[str, Any]) -> KeysValues:
    """Of all tokens, those in the cache first; afterwards the cache has them too."""
    seen: list[KeysValues] = []

    def stop(key: torch.Tensor, value: torch.Tensor) -> KeysValues:
        seen.append((key, value))
        raise _Seen

    try:
        plain(hidden, **inputs, meet=stop)
    except _Seen:
        return seen[0]
    raise RuntimeError("the layer does not pass on its arguments to the attention interface")


def _only_at(inputs: dict[str, Any], columns: torch.Tensor, num_columns: int) -> dict[str, Any]:
    """The inputs of the asked tokens; there is no cache, because all keys and values are given."""
    mask = inputs.get("attention_mask")
    if mask is None:
        seen = torch.arange(num_columns, device=columns.device)
        mask = (seen <= seen[:, None])[None, None]
    if mask.ndim != 4 or mask.shape[2] != num_columns:
        raise ValueError("this attention mask is not that of columns and what they see")
    chosen = {"attention_mask": pick(mask.transpose(1, 2), columns).transpose(1, 2), "use_cache": False}
    if inputs.get("position_ids") is not None:
        chosen["position_ids"] = pick(inputs["position_ids"], columns)
    if inputs.get("position_embeddings") is not None:
        chosen["position_embeddings"] = tuple(pick(each, columns) for each in inputs["position_embeddings"])
    caches = dict.fromkeys(inputs.keys() & CACHE_ARGUMENTS)
    return {**inputs, **caches, **chosen}


def pick(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Args: values: (num_rows or 1, num_columns, ...). Returns: (num_rows, num_asked, ...)."""
    index = columns.view(*columns.shape, *[1] * (values.ndim - 2))
    return torch.take_along_dim(values.expand(columns.shape[0], *values.shape[1:]), index, dim=1)
