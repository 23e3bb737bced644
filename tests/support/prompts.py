"""Prompts of random values for the tiny backbone, and a place for registries that fsync does not slow down."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from app.model.backbone import Backbone
from app.registry.formats.binding import bind_rows, row_size
from app.registry.formats.peft_checkpoint import encode_checkpoint
from app.task_prompt import PromptKind, TaskPrompt


def random_rows(
    backbone: Backbone, num_rows: int = 5, *, seed: int = 0, kind: PromptKind = PromptKind.EMBEDDINGS
) -> torch.Tensor:
    return torch.randn(num_rows, row_size(kind, backbone), generator=torch.Generator().manual_seed(seed))


def random_prompt(
    backbone: Backbone, num_rows: int = 5, *, seed: int = 0, kind: PromptKind = PromptKind.EMBEDDINGS
) -> TaskPrompt:
    return bind_rows(random_rows(backbone, num_rows, seed=seed, kind=kind), kind, backbone)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory if the machine has one, else on disk."""
    with TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def write_checkpoint(folder: Path, prompt: TaskPrompt, backbone: Backbone) -> None:
    """A folder that `PeftModel.from_pretrained` loads, of the files that a version has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in encode_checkpoint(prompt, backbone).items():
        (folder / name).write_bytes(content)
