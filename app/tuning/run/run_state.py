"""RunState: all that a tuning run needs to go on as if it had never been interrupted. Safetensors, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from app.errors import CorruptPrompt

BOOKS = "books"
"""Name of the tensor that holds everything that is no tensor: JSON in UTF-8, as uint8."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Attributes:
    books: JSON's types: the plan's digest, the updates done, history, what is known of each member.
    tensors: by member and name, `3.scaled`; float32 or the optimiser's own types, on CPU.
    """

    books: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def to_bytes(self) -> bytes:
        text = json.dumps(self.books, allow_nan=True).encode()
        named = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return bytes(save(named | {BOOKS: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> RunState:
        """Raises CorruptPrompt."""
        try:
            tensors = load(data)
            books = json.loads(bytes(tensors.pop(BOOKS).numpy()))
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptPrompt("the saved state of the tuning run cannot be read") from error
        return cls(books, tensors)

    def tensors_of(self, number: int) -> dict[str, torch.Tensor]:
        """Those of one member, without its number in front."""
        return self.tensors_under(f"{number}.")

    def tensors_under(self, head: str) -> dict[str, torch.Tensor]:
        """Those whose names begin so, without that beginning."""
        return {name.removeprefix(head): tensor for name, tensor in self.tensors.items() if name.startswith(head)}
