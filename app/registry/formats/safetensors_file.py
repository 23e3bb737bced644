"""Safetensors files, read without trust: a small, unambiguous header first, then what the safetensors crate proves.

The crate accepts more than a prompt needs: duplicate keys, unknown fields, a header of 100 MB, a million empty tensors.
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from app.errors import InvalidInput
from app.task_prompt import TaskPrompt

MAX_HEADER_BYTES = 16 * 1024
MAX_METADATA_BYTES = 4 * 1024
MAX_DIMENSIONS = 3
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HALF_DTYPES = (torch.bfloat16, torch.float16)
_LENGTH_BYTES = 8
INITIAL_FILE = "initial.safetensors"
"""The rows that tuning started from, kept with those it ended with. PEFT does not read it."""
_INITIAL_NAME = "initial_rows"
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file holds it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: bytearray

    def read(self) -> torch.Tensor:
        """Shares the memory of `content`."""
        return torch.frombuffer(self.content, dtype=self.dtype).reshape(self.shape)


def tensor_names(data: bytes) -> set[str]:
    """What the file says that it holds. Raises InvalidInput: its header cannot be read."""
    return _read_header(data).keys() - {_METADATA}


def open_tensors(data: bytes, *, names: Collection[str], dtypes: Collection[str]) -> dict[str, StoredTensor]:
    """The tensors of a file that holds exactly `names`, each of one of `dtypes`, and nothing else.

    Raises InvalidInput: anything in the file is not as it should be; the message quotes nothing from the file.
    """
    fields = _read_header(data)
    metadata = fields.pop(_METADATA, {})
    if not isinstance(metadata, dict) or len(json.dumps(metadata)) > MAX_METADATA_BYTES:
        _refuse(f"__metadata__ must map strings to strings, and may have at most {MAX_METADATA_BYTES} bytes")
    if fields.keys() != set(names):
        _refuse(f"the file must hold exactly these tensors: {', '.join(sorted(names))}")
    for field in fields.values():
        _check_field(field, dtypes)
    try:
        stored = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError:
        _refuse("the file is cut short, or its header does not describe exactly the bytes that follow it")
    return {name: StoredTensor(DTYPES[t["dtype"]], tuple(t["shape"]), t["data"]) for name, t in stored.items()}


def narrowest_dtype(rows: torch.Tensor) -> torch.dtype:
    """The dtype that holds every value of float32 rows exactly in the fewest bytes."""
    return next((each for each in _HALF_DTYPES if torch.equal(rows.to(each).float(), rows)), torch.float32)


def encode_initial(rows: torch.Tensor, prompt: TaskPrompt) -> bytes:
    """In the dtype that the prompt's values are stored in, or in float32 if a value is too large for that.

    Args: rows: of the prompt's shape, any floating dtype and device.

    Raises InvalidInput: they do not fit it.
    """
    if prompt.rows is None or rows.shape != prompt.rows.shape:
        raise InvalidInput("the initial rows must have the shape of the prompt's", param="initial")
    values = rows.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput("every initial value must be finite", param="initial")
    stored = values.to(narrowest_dtype(prompt.rows))
    return safetensors.torch.save({_INITIAL_NAME: stored if bool(stored.isfinite().all()) else values})


def decode_initial(content: bytes) -> torch.Tensor:
    """(num_virtual_tokens, width) float32. Raises InvalidInput."""
    return open_tensors(content, names={_INITIAL_NAME}, dtypes=("BF16", "F16", "F32"))[_INITIAL_NAME].read().float()


def _read_header(data: bytes) -> dict[str, Any]:
    """The header, which names nothing twice."""
    num_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or num_bytes > MAX_HEADER_BYTES:
        _refuse(f"the file is no safetensors file, or one with a header of more than {MAX_HEADER_BYTES} bytes")
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + num_bytes]
    if not header.startswith(b"{"):
        _refuse("the header must be a JSON object")
    try:
        fields: dict[str, Any] = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        _refuse("the header is not valid JSON")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        _refuse("the header names something twice")
    return fields


def _check_field(field: Any, dtypes: Collection[str]) -> None:
    """What the crate leaves open. Types and sizes it checks itself."""
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("a tensor has dtype, shape and data_offsets")
    if field["dtype"] not in list(dtypes):
        _refuse(f"dtype must be one of {', '.join(sorted(dtypes))}")
    shape = field["shape"]
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        _refuse(f"shape must have 1 to {MAX_DIMENSIONS} dimensions, none of them empty")


def _refuse(message: str) -> NoReturn:
    raise InvalidInput(message, param="prompt_embeddings")
