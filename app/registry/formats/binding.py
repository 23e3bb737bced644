"""Binding: what makes values a task prompt of one particular backbone: rows, texts, and files of other programs.

Nothing here opens a pickle or runs a file's code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, encode_text, num_positions_after_prompt
from app.registry.formats.manifest import tell_apart
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE, TENSOR_NAME, PeftConfig, read_rows
from app.registry.formats.safetensors_file import DTYPES, MAX_HEADER_BYTES, open_tensors
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind, TaskPrompt, is_finite

UNUSUAL_NORM_RATIO = 10.0
"""A row this many times longer or shorter than a vocabulary row is worth a warning; real prompts reach hundreds."""
MAX_TEXT_CHARS = 32_768
"""Far more than MAX_VIRTUAL_TOKENS can hold; bounds the time a tokenizer takes to find that out."""
_NUM_SAMPLED_TOKENS = 4_096
_MAX_TOKENS_PER_CHAR = 4
"""Of vocabularies that spell what they do not know in bytes."""
MAX_UPLOAD_BYTES = 16 * 2**20
UPLOAD_DTYPES = ("BF16", "F16", "F32")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_ADVICE = (
    "is a pickle, which can run code when it is opened, so softswap never opens one. Convert a file you trust "
    'yourself: python -c "import sys, torch; from safetensors.torch import save_file; t = torch.load(sys.argv[1], '
    "map_location='cpu', weights_only=True); t = t if isinstance(t, dict) else {'prompt_embeddings': t}; "
    'save_file({k: v.detach().contiguous() for k, v in t.items()}, sys.argv[2])" '
    "adapter_model.bin adapter_model.safetensors"
)


class PromptSize(Protocol):
    """A prompt, or a version that has it."""

    @property
    def kind(self) -> PromptKind: ...
    @property
    def num_virtual_tokens(self) -> int: ...


def bind_rows(rows: torch.Tensor, kind: PromptKind, backbone: Backbone) -> TaskPrompt:
    """Args: rows: (num_virtual_tokens, row_size(kind, backbone)), any floating dtype.

    Raises InvalidInput: shape, length or values do not fit the backbone.
    """
    check_shape(tuple(rows.shape), kind, backbone)
    prompt = TaskPrompt.from_rows(kind, rows, backbone.fingerprint)
    require_fit(prompt, backbone)
    return prompt


def bind_text(text: str, backbone: Backbone) -> TaskPrompt:
    """A text prompt: the text as the backbone's tokenizer encodes it, with its leading special tokens."""
    if not text.strip() or len(text) > MAX_TEXT_CHARS:
        raise InvalidInput(f"a text prompt has 1 to {MAX_TEXT_CHARS} characters, not only blanks", param="text")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidInput("the text has half a surrogate pair, which is not valid Unicode", param="text")
    token_ids = encode_text(backbone.tokenizer, text)
    backbone.require_embedded(token_ids, "the text", param="text")
    prompt = TaskPrompt.from_text(text, token_ids, backbone.fingerprint)
    require_fit(prompt, backbone)
    return prompt


def require_fit(prompt: TaskPrompt, backbone: Backbone) -> None:
    """Whether this backbone, in the dtype it was loaded with, can serve the prompt.

    Raises:
        BackboneMismatch: it belongs to another backbone, even if the width fits.
        InvalidInput: too long for the context, or values overflow in the backbone's dtype.
    """
    require_same_backbone(prompt.backbone_fingerprint, backbone)
    if prompt.num_virtual_tokens >= backbone.max_model_len:
        raise InvalidInput(
            f"the prompt must be shorter than the model's {backbone.max_model_len} positions",
            param="num_virtual_tokens",
        )
    if prompt.rows is None:
        if list(prompt.token_ids) != encode_text(backbone.tokenizer, prompt.text or ""):
            raise BackboneMismatch(
                "the tokenizer no longer encodes the prompt's text as it did when it was published; publish it again",
                param="token_ids",
            )
        return
    check_shape(tuple(prompt.rows.shape), prompt.kind, backbone)
    if not is_finite(prompt.rows, backbone.dtype):
        raise InvalidInput(f"a value overflows in the backbone's {backbone.dtype}", param="prompt_embeddings")


def require_room(
    prompt: PromptSize,
    template: Template | None,
    labels: Sequence[str],
    *,
    backbone: Backbone,
    max_positions: int,
) -> None:
    """Whether a request with such a prompt can be answered at all.

    Args: max_positions: of one sequence, in the engine that serves; those of the backbone if it has fewer.

    Raises InvalidInput: prompt, template and answer are longer; or as `encode_labels`.
    """
    template, max_positions = template or BARE, min(max_positions, backbone.max_model_len)
    num_chars = len(template.text) + max(map(len, labels), default=0)
    if prompt.num_virtual_tokens + _MAX_TOKENS_PER_CHAR * num_chars + 3 <= max_positions:
        return  # as nearly always, and without the tokenizer
    needed = num_positions_after_prompt(backbone, template, labels, is_written=prompt.kind is PromptKind.TEXT)
    if prompt.num_virtual_tokens + needed > max_positions:
        raise InvalidInput(
            f"{prompt.num_virtual_tokens} virtual tokens, and {needed} for the template with the shortest text and the "
            f"longest answer, are more than a sequence may have here: max_model_len is {max_positions}",
            param="num_virtual_tokens",
        )


def require_same_backbone(fingerprint: str, backbone: Backbone, name: str = "") -> None:
    """Args: name: of the backbone with this fingerprint, if it is known. Raises BackboneMismatch."""
    if fingerprint != backbone.fingerprint:
        names = tell_apart({fingerprint: name, backbone.fingerprint: backbone.name})
        raise BackboneMismatch(
            f"the prompt was made for the backbone {names[fingerprint]}, not for {names[backbone.fingerprint]}",
            param="backbone",
        )


def row_size(kind: PromptKind, backbone: Backbone) -> int:
    return backbone.kv_row_size if kind is PromptKind.KV else backbone.hidden_size


def check_shape(shape: tuple[int, ...], kind: PromptKind, backbone: Backbone) -> None:
    """Raises InvalidInput."""
    width = row_size(kind, backbone)
    if len(shape) != 2 or shape[1] != width:
        raise InvalidInput(
            f"{kind} for {backbone.name} must have the shape (num_virtual_tokens, {width})", param="prompt_embeddings"
        )
    if shape[0] > MAX_VIRTUAL_TOKENS:
        raise InvalidInput(f"a prompt has at most {MAX_VIRTUAL_TOKENS} virtual tokens", param="prompt_embeddings")


@torch.no_grad()
def norm_warnings(prompt: TaskPrompt, backbone: Backbone) -> list[str]:
    """What is unusual about the norms of a prompt's rows; nothing for keys and values, which have no yardstick.

    Released prompts have row norms from 0.5 to 2,300 and work, so this is for people to read; it refuses nothing.
    """
    if prompt.kind is not PromptKind.EMBEDDINGS or prompt.rows is None:
        return []
    token_ids = torch.arange(
        0, backbone.vocab_size, max(1, backbone.vocab_size // _NUM_SAMPLED_TOKENS), device=backbone.device
    )
    typical = float(backbone.embed(token_ids).float().norm(dim=-1).median())
    norms = prompt.rows.norm(dim=1)
    num_unusual = int(((norms > typical * UNUSUAL_NORM_RATIO) | (norms < typical / UNUSUAL_NORM_RATIO)).sum())
    if not num_unusual:
        return []
    spread = f"{norms.min():.3g} to {norms.max():.3g}"
    return [f"{num_unusual} of {len(norms)} rows are far from the vocabulary's norm {typical:.3g}; all are {spread}"]


def read_checkpoint(path: Path, backbone: Backbone, *, multitask_index: int | None = None) -> TaskPrompt:
    """A prompt from a PEFT folder, a lone `.safetensors` file with `prompt_embeddings`, or a `.npy` matrix.

    By calling this, the caller says that the prompt was made for this backbone: most foreign files do not say so.

    Args: multitask_index: which task of a MULTITASK_PROMPT_TUNING checkpoint; None if it has only one.

    Raises InvalidInput: names the file or field at fault and, for pickles, says how to convert them.
    """
    if path.is_dir():
        config = PeftConfig.decode(_read_config(path))
        config.require_backbone(backbone)
        rows = read_rows(config, _read_tensor_file(path / TENSOR_FILE, backbone), multitask_index=multitask_index)
        return bind_rows(rows, config.kind, backbone)
    if path.suffix == ".npy":
        return bind_rows(_read_npy(path, backbone), PromptKind.EMBEDDINGS, backbone)
    if path.suffix == ".safetensors":
        stored = open_tensors(_read_tensor_file(path, backbone), names={TENSOR_NAME}, dtypes=DTYPES)[TENSOR_NAME]
        is_kv = stored.shape[-1] == backbone.kv_row_size != backbone.hidden_size
        return bind_rows(stored.read(), PromptKind.KV if is_kv else PromptKind.EMBEDDINGS, backbone)
    if path.suffix in PICKLE_SUFFIXES:
        raise InvalidInput(f"{path.name} {PICKLE_ADVICE}", param="path")
    raise InvalidInput("the path must be a PEFT folder, a .safetensors or a .npy file", param="path")


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint says about where it comes from, to be published as provenance."""
    if path.is_dir():
        return PeftConfig.decode(_read_config(path)).provenance
    return {"source": path.suffix.removeprefix("."), "file": path.name}


def read_upload(data: bytes, backbone: Backbone, *, kind: PromptKind = PromptKind.EMBEDDINGS) -> TaskPrompt:
    """From untrusted bytes: a safetensors file with one tensor, `prompt_embeddings`.

    Size, header, dtype and shape are checked before a value is read, and values before anything is kept.

    Raises InvalidInput: always with the reason, never with the input.
    """
    if len(data) > MAX_UPLOAD_BYTES:
        raise InvalidInput(f"the file may have at most {MAX_UPLOAD_BYTES} bytes", param="prompt_embeddings")
    if kind is PromptKind.TEXT:
        raise InvalidInput("a text prompt is sent as text, not as a tensor", param="kind")
    stored = open_tensors(data, names={TENSOR_NAME}, dtypes=UPLOAD_DTYPES)[TENSOR_NAME]
    return bind_rows(stored.read(), kind, backbone)


def require_possible_size(num_bytes: int, backbone: Backbone) -> None:
    """Raises InvalidInput: no readable checkpoint for this backbone is so large: float64, and every row twice."""
    widest = max(backbone.hidden_size, backbone.kv_row_size)
    if num_bytes > MAX_HEADER_BYTES + 8 + 8 * 2 * MAX_VIRTUAL_TOKENS * widest + 8 * MAX_VIRTUAL_TOKENS * 1024:
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
