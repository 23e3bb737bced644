"""Files of other programs, and uploads, as prompts of a backbone.

Nothing here opens a pickle or runs a file's code.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.registry.formats.binding import bind_rows, check_shape, max_prompt_bytes
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE, PeftConfig, read_bare_rows, read_rows
from app.registry.formats.safetensors_file import DTYPES, MAX_HEADER_BYTES
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind, TaskPrompt

_MAX_FRAME_BYTES = MAX_HEADER_BYTES + 8
"""Of a safetensors file, around the values."""
UPLOAD_DTYPES = ("BF16", "F16", "F32")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_ADVICE = (
    "is a pickle, which can run code when it is opened, so softswap never opens one. Convert a file you trust "
    'yourself: python -c "import sys, torch; from safetensors.torch import save_file; t = torch.load(sys.argv[1], '
    "map_location='cpu', weights_only=True); t = t if isinstance(t, dict) else {'prompt_embeddings': t}; "
    'save_file({k: v.detach().contiguous() for k, v in t.items()}, sys.argv[2])" '
    "adapter_model.bin adapter_model.safetensors"
)


def read_checkpoint(path: Path, backbone: Backbone, *, source_task: int | None = None) -> TaskPrompt:
    """A prompt from a PEFT folder, a lone `.safetensors` file with `prompt_embeddings`, or a `.npy` matrix.

    By calling this, the caller says that the prompt was made for this backbone: most foreign files do not say so.

    Args: source_task: which task of a MULTITASK_PROMPT_TUNING checkpoint; None if it has only one.

    Raises InvalidInput: names the file or field at fault and, for pickles, says how to convert them.
    """
    if path.is_dir():
        config = PeftConfig.decode(_read_config(path))
        config.require_backbone(backbone)
        rows = read_rows(config, _read_tensor_file(path / TENSOR_FILE, backbone), source_task=source_task)
        return bind_rows(rows, config.kind, backbone)
    if path.suffix == ".npy":
        if source_task is not None:
            raise InvalidInput("a .npy file holds one prompt", param="source_task")
        return bind_rows(_read_npy(path, backbone), PromptKind.EMBEDDINGS, backbone)
    if path.suffix == ".safetensors":
        rows = read_bare_rows(_read_tensor_file(path, backbone), DTYPES, source_task=source_task)
        return bind_rows(rows, _kind_by_width(rows, backbone), backbone)
    if path.suffix in PICKLE_SUFFIXES:
        raise InvalidInput(f"{path.name} {PICKLE_ADVICE}", param="path")
    raise InvalidInput("the path must be a PEFT folder, a .safetensors or a .npy file", param="path")


def describe_checkpoint(path: Path, *, source_task: int | None = None) -> dict[str, Any]:
    """What a checkpoint says about where it comes from, to be published as provenance."""
    chosen = {} if source_task is None else {"source_task": source_task}
    if path.is_dir():
        return PeftConfig.decode(_read_config(path)).provenance | chosen
    return {"source": path.suffix.removeprefix("."), "file": path.name, **chosen}


def read_upload(
    data: bytes, backbone: Backbone, *, kind: PromptKind | None = None, source_task: int | None = None
) -> TaskPrompt:
    """From untrusted bytes: a safetensors file with one tensor, `prompt_embeddings`, or the three of a multitask one.

    Size, header, dtype and shape are checked before a value is read, and values before anything is kept.

    Args: kind: None takes what the rows are as wide as.

    Raises InvalidInput: always with the reason, never with the input.
    """
    if len(data) > (limit := max_upload_bytes(backbone)):
        raise InvalidInput(
            f"the file may have at most {limit} bytes: a prompt has at most {MAX_VIRTUAL_TOKENS} virtual tokens",
            param="prompt_embeddings",
        )
    if kind is PromptKind.TEXT:
        raise InvalidInput("a text prompt is sent as text, not as a tensor", param="kind")
    rows = read_bare_rows(data, UPLOAD_DTYPES, source_task=source_task)
    return bind_rows(rows, kind or _kind_by_width(rows, backbone), backbone)


def _kind_by_width(rows: torch.Tensor, backbone: Backbone) -> PromptKind:
    is_kv = rows.shape[-1] == backbone.kv_row_size != backbone.hidden_size
    return PromptKind.KV if is_kv else PromptKind.EMBEDDINGS


def max_upload_bytes(backbone: Backbone) -> int:
    """Of an uploaded file: no prompt of the backbone needs more."""
    return _MAX_FRAME_BYTES + max_prompt_bytes(backbone)


def require_possible_size(num_bytes: int, backbone: Backbone) -> None:
    """Raises InvalidInput: no readable checkpoint for this backbone is so large: float64, and every row twice."""
    if num_bytes > _MAX_FRAME_BYTES + 4 * max_prompt_bytes(backbone) + 8 * MAX_VIRTUAL_TOKENS * 1024:
        raise InvalidInput(f"the tensor's file is larger than any prompt for {backbone.name} can be", param=TENSOR_FILE)


def _read_config(folder: Path) -> bytes:
    try:
        return (folder / CONFIG_FILE).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{folder.name} has no readable {CONFIG_FILE}", param=CONFIG_FILE) from error


def _read_tensor_file(path: Path, backbone: Backbone) -> bytes:
    if not path.is_file():
        names = [each.name for each in path.parent.glob("*")]
        raise InvalidInput(f"{path.parent.name}: {why_missing(path.name, names)}", param=path.name)
    require_possible_size(path.stat().st_size, backbone)
    return path.read_bytes()


def why_missing(name: str, names: Iterable[str]) -> str:
    """Why a folder with these names has no `name`."""
    if name == TENSOR_FILE and (pickles := [each for each in sorted(names) if each.endswith(PICKLE_SUFFIXES)]):
        return f"{pickles[0]} {PICKLE_ADVICE}"
    if name == TENSOR_FILE and any(".safetensors" in each for each in names):
        return f"the prompt must be in one {TENSOR_FILE}, not in several files or under another name"
    return f"it has no {name}"


def _read_npy(path: Path, backbone: Backbone) -> torch.Tensor:
    """As google-research/prompt-tuning writes them: a matrix, row-major, without metadata."""
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no {path.name}", param="path") from error
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{path.name} is not a plain .npy matrix", param="path") from error
    check_shape(mapped.shape, PromptKind.EMBEDDINGS, backbone)
    if mapped.dtype.kind != "f" or mapped.dtype.itemsize not in (2, 4, 8):
        raise InvalidInput("the matrix must hold float16, float32 or float64", param="prompt_embeddings")
    return torch.from_numpy(np.array(mapped, dtype=mapped.dtype.newbyteorder("="), order="C"))
