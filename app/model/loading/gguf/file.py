"""GgufFile: what a .gguf file says of its model, read without its weights, and without torch.

The format is ggml's (`docs/gguf.md` of ggml, versions 2 and 3). The reader of package `gguf` makes an array of numpy
for every string of a vocabulary, which takes seconds; this one reads the same in a fraction of a second.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, dequantize

from app.errors import InvalidInput, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
LENGTH = struct.Struct("<Q")
ROW_SIZE = 4096
FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
KIND_TO_FORMAT = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: as torch has it; the file names the dimensions in the opposite order.
        start, num_bytes: of its blocks in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    num_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """Attributes: metadata: what stands in the header under each key; arrays are lists."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Raises InvalidInput: it is no whole .gguf file. UnsupportedModel: its tensors cannot be dequantized."""
        try:
            with path.open("rb") as file, _map(file) as data:
                return _read(path, data)
        except _Damaged as error:
            raise InvalidInput(f"{path.name} is damaged or was not fetched whole: {error}", param="model") from error
        except OSError as error:
            raise InvalidInput(f"{path.name} cannot be read ({error.strerror})", param="model") from error

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def about_model(self, key: str) -> Any:
        """What stands under the architecture's own key, such as `block_count`; None if nothing does."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @cached_property
    def name_to_tensor(self) -> dict[str, GgufTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def num_parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def read_values(self, tensor: GgufTensor, first: int, count: int) -> np.ndarray:
        """(count,) float32: some of the tensor's values, in the order of memory. Safe to call from any thread.

        Args: first, count: within the tensor, multiples of its type's block.
        """
        block_size, block_bytes = GGML_QUANT_SIZES[tensor.type]
        start = tensor.start + first // block_size * block_bytes
        blocks = np.fromfile(self.path, np.uint8, count // block_size * block_bytes, offset=start)
        # package gguf takes 16 rows at a time; with longer rows than most models have it is up to twice as fast
        num_rows = count // ROW_SIZE if count % ROW_SIZE == 0 else 1
        values: np.ndarray = dequantize(blocks.reshape(num_rows, -1), tensor.type)
        return values.reshape(-1)

    @property
    def float_type(self) -> GGMLQuantizationType | None:
        """The type of the matrices; None if they are quantized."""
        types = {tensor.type for tensor in self.tensors if len(tensor.shape) > 1}
        return types.pop() if len(types) == 1 and types <= FLOATS else None


def _map(file: BinaryIO) -> mmap.mmap:
    """Raises _Damaged: nothing is in it, which cannot be mapped."""
    if os.fstat(file.fileno()).st_size == 0:
        raise _Damaged("it is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data)
    if data[: len(MAGIC)] != MAGIC:
        raise InvalidInput(f"{path.name} is no .gguf file: it does not begin with GGUF", param="model")
    cursor.position = len(MAGIC)
    version, num_tensors, num_values = (cursor.number(kind) for kind in "IQQ")
    if version not in VERSIONS:
        wanted = " and ".join(map(str, VERSIONS))
        raise UnsupportedModel(
            f"{path.name} is of version {version} of the format, or of a machine of the other byte order; "
            f"versions {wanted} of little-endian machines are read",
            param="model",
        )
    metadata = dict(cursor.entry() for _ in range(num_values))
    places = [cursor.tensor() for _ in range(num_tensors)]
    _check_metadata(path, metadata)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged("general.alignment is no alignment")
    start = -(-cursor.position // alignment) * alignment
    tensors = tuple(_place(path, *place, start=start, end=len(data)) for place in places)
    if not tensors or len({tensor.name for tensor in tensors}) < len(tensors):
        raise _Damaged("it holds no tensors, or one of them twice")
    return GgufFile(path, metadata, tensors)


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    if not isinstance(metadata.get("general.architecture"), str):
        raise _Damaged("it does not say general.architecture")
    if metadata.get("split.count", 1) != 1:
        raise UnsupportedModel(
            f"{path.name} is one of {metadata['split.count']} parts; join them with llama.cpp's "
            "`llama-gguf-split --merge`",
            param="model",
        )


def _place(
    path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, *, start: int, end: int
) -> GgufTensor:
    """Raises UnsupportedModel, _Damaged."""
    if not can_dequantize(kind):
        known = GGMLQuantizationType(kind).name if kind in set(GGMLQuantizationType) else f"number {kind}"
        raise UnsupportedModel(
            f"{path.name} keeps {name} in type {known}, which package gguf does not dequantize", param="model"
        )
    tensor_type = GGMLQuantizationType(kind)
    block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if not shape or 0 in shape or shape[-1] % block_size:
        raise _Damaged(f"{name} has an impossible shape")
    tensor = GgufTensor(name, shape, tensor_type, start + offset, prod(shape) // block_size * block_bytes)
    if tensor.start + tensor.num_bytes > end:
        raise _Damaged(f"{name} ends at byte {tensor.start + tensor.num_bytes} of {end}")
    return tensor


@cache
def can_dequantize(kind: int) -> bool:
    """Tried on a block of zeros: the package has no list."""
    try:
        tensor_type = GGMLQuantizationType(kind)
        dequantize(np.zeros(GGML_QUANT_SIZES[tensor_type][1], np.uint8), tensor_type)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


class _Damaged(Exception):
    """Says what is wrong with the bytes."""


class _Cursor:
    """Reads one value after another. Every method raises _Damaged: the bytes end before the value does."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        num_bytes = struct.calcsize(f"<{kind}") * count
        return struct.unpack(f"<{count}{kind}", self._take(num_bytes))

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """In one loop: a vocabulary and its merges are some hundred thousand."""
        data, position, texts = self._data, self.position, []
        try:
            for _ in range(count):
                (num_bytes,) = LENGTH.unpack_from(data, position)
                end = position + LENGTH.size + num_bytes
                texts.append(data[position + LENGTH.size : end].decode("utf-8"))
                position = end
        except UnicodeDecodeError as error:
            raise _Damaged(f"the text at byte {position} is not UTF-8") from error
        except (struct.error, OverflowError):  # the length itself is not there, or no place has that number
            position = len(data) + 1
        self.position = self._within(position)
        return texts

    def entry(self) -> tuple[str, Any]:
        """A key and its value."""
        return self.string(), self._value(self.number("I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, and offset from where tensors begin."""
        name, num_dimensions = self.string(), self.number("I")
        if num_dimensions > MAX_DIMENSIONS:
            raise _Damaged(f"{name} has {num_dimensions} dimensions")
        shape = self.numbers("Q", num_dimensions)
        return name, shape[::-1], self.number("I"), self.number("Q")

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._array(*self.numbers("I", 1), *self.numbers("Q", 1))
        return self.number(_format_of(kind))

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return self.strings(count)
        return list(self.numbers(_format_of(kind), count))

    def _take(self, num_bytes: int) -> bytes:
        end = self._within(self.position + num_bytes)
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def _within(self, position: int) -> int:
        """Raises _Damaged: it lies after the end."""
        if position > len(self._data):
            raise _Damaged(f"it ends at byte {len(self._data)}, within its header")
        return position


def _format_of(kind: int) -> str:
    try:
        return KIND_TO_FORMAT[GGUFValueType(kind)]
    except (KeyError, ValueError) as error:
        raise _Damaged(f"it holds a value of unknown type {kind}") from error
