"""RunState: everything a tuning run needs to continue as if never interrupted. Safetensors, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from app.errors import CorruptPrompt

RECORD = "books"
"""Name, in every version of the format, of the tensor that holds everything else: JSON in UTF-8, as uint8."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Attributes:
    record: JSON's types: the plan's digest, the updates done, history, what is known of each member.
    tensors: by member and name, `3.scaled`; float32 or the optimizer's own types, on CPU.
    """

    record: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def to_bytes(self) -> bytes:
        text = json.dumps(self.record, allow_nan=True).encode()
        named = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return bytes(save(named | {RECORD: torch.frombuffer(bytearray(text), dtype=torch.uint8)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> RunState:
        """Raises CorruptPrompt."""
        try:
            tensors = load(data)
            record = json.loads(bytes(tensors.pop(RECORD).numpy()))
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptPrompt("the saved state of the tuning run cannot be read") from error
        return cls(record, tensors)

    def tensors_under(self, head: str) -> dict[str, torch.Tensor]:
        """Those whose names start with `head`, without it."""
        return {name.removeprefix(head): tensor for name, tensor in self.tensors.items() if name.startswith(head)}
