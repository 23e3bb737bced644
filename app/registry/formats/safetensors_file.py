"""Safetensors files, read without trust: the header is bounded and proven exact before a tensor is looked at.

The safetensors library accepts more than a prompt needs: duplicate keys, a header of 100 MB, a million empty tensors,
any name. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from app.errors import InvalidInput

MAX_HEADER_BYTES = 16 * 1024
MAX_METADATA_BYTES = 4 * 1024
MAX_DIMENSIONS = 3
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that still lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: memoryview

    def read(self) -> torch.Tensor:
        """A copy, which does not hold on to the file."""
        return torch.frombuffer(bytearray(self.content), dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a tensor lies in the bytes behind the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def open_tensors(data: bytes, *, names: Collection[str], dtypes: Collection[str]) -> dict[str, StoredTensor]:
    """The tensors of a file that holds exactly `names`, each of one of `dtypes`, and nothing else. Copies nothing.

    Raises:
        InvalidInput: anything in the file is not as it should be.
    """
    header, body = _split(data)
    fields = _parse(header)
    _check_metadata(fields.pop("__metadata__", {}))
    if fields.keys() != set(names):
        _refuse(f"the file must hold exactly these tensors: {', '.join(sorted(names))}")
    slots = {name: _slot(fields[name], dtypes) for name in names}
    _check_cover(slots.values(), len(body))
    return {n: StoredTensor(slot.dtype, slot.shape, body[slot.begin : slot.end]) for n, slot in slots.items()}


def _split(data: bytes) -> tuple[bytes, memoryview]:
    if len(data) < _LENGTH_BYTES:
        _refuse("the file is no safetensors file: it is too short")
    num_header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if num_header_bytes > MAX_HEADER_BYTES:
        _refuse(f"the file is no safetensors file, or one with a header of more than {MAX_HEADER_BYTES} bytes")
    begin = _LENGTH_BYTES + num_header_bytes
    if begin > len(data):
        _refuse("the file is cut short")
    return data[_LENGTH_BYTES:begin], memoryview(data)[begin:]


def _parse(header: bytes) -> dict[str, Any]:
    """The header as a dictionary in which every number is an integer of at least zero."""
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        _refuse("the header must be a JSON object, padded with spaces")
    try:
        fields: dict[str, Any] = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_unsigned,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError):
        _refuse("the header is not valid JSON")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        _refuse("the header names something twice")
    return fields


def _unsigned(digits: str) -> int:
    if digits.startswith("-") or len(digits) > 18:
        _refuse_number(digits)
    return int(digits)


def _refuse_number(_: str) -> NoReturn:
    _refuse("numbers in the header must be small integers of at least zero")


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("__metadata__ must map strings to strings")
    try:
        num_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    except UnicodeEncodeError:
        _refuse("__metadata__ must be valid Unicode")
    if num_bytes > MAX_METADATA_BYTES:
        _refuse(f"__metadata__ may have at most {MAX_METADATA_BYTES} bytes")


def _slot(field: Any, dtypes: Collection[str]) -> _Slot:
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("a tensor has dtype, shape and data_offsets")
    if not isinstance(field["dtype"], str) or field["dtype"] not in dtypes:
        _refuse(f"dtype must be one of {', '.join(sorted(dtypes))}")
    shape, offsets = field["shape"], field["data_offsets"]
    if not _is_integers(shape) or not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        _refuse(f"shape must have 1 to {MAX_DIMENSIONS} dimensions, none of them empty")
    if not _is_integers(offsets) or len(offsets) != 2:
        _refuse("data_offsets must be two integers")
    dtype = DTYPES[field["dtype"]]
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        _refuse("data_offsets must span exactly the bytes of the shape")
    return _Slot(dtype, tuple(shape), offsets[0], offsets[1])


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_cover(slots: Collection[_Slot], num_bytes: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    covered = 0
    for slot in sorted(slots, key=lambda slot: slot.begin):
        if slot.begin != covered:
            _refuse("tensors must follow one another without holes or overlaps")
        covered = slot.end
    if covered != num_bytes:
        _refuse("the file is cut short or has bytes that belong to no tensor")


def _refuse(message: str) -> NoReturn:
    raise InvalidInput(message, param="prompt_embeddings")
