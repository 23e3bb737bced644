"""initial.safetensors: the rows that tuning started from, kept with those it ended with. PEFT does not read it."""

from __future__ import annotations

import safetensors.torch
import torch

from app.errors import InvalidInput
from app.registry.formats.safetensors_file import open_tensors
from app.task_prompt import TaskPrompt

INITIAL_FILE = "initial.safetensors"
INITIAL_NAME = "initial_rows"


def encode_initial(rows: torch.Tensor, prompt: TaskPrompt) -> bytes:
    """Args: rows: of the prompt's shape, any floating dtype and device. Raises InvalidInput: they do not fit it."""
    if prompt.rows is None or rows.shape != prompt.rows.shape:
        raise InvalidInput("the initial rows must have the shape of the prompt's", param="initial")
    values = rows.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput("every initial value must be finite", param="initial")
    return safetensors.torch.save({INITIAL_NAME: values})


def decode_initial(content: bytes) -> torch.Tensor:
    """(num_virtual_tokens, width) float32. Raises InvalidInput."""
    return open_tensors(content, names={INITIAL_NAME}, dtypes=("F32",))[INITIAL_NAME].read()
