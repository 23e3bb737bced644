"""Files a stranger might upload as a prompt, each wrong in one way, and the reading that decides what is right."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import safetensors.torch
import torch

WIDTH = 32
NAME = "prompt_embeddings"


def assemble(header: bytes | dict[str, object], body: bytes, *, num_header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if num_header_bytes is None else num_header_bytes) + text + body


def field(shape: list[object], *, dtype: object = "F32", begin: object = 0, end: object = None) -> dict[str, object]:
    size = 4
    for dimension in shape:
        size *= dimension if isinstance(dimension, int) else 1
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, size if end is None else end]}


def good_file(num_rows: int = 4, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> bytes:
    rows = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return safetensors.torch.save({NAME: rows}, metadata={"format": "pt"})


def _rows_with(value: float, dtype: torch.dtype = torch.float32) -> bytes:
    rows = torch.zeros(4, WIDTH, dtype=dtype)
    rows[2, 3] = value
    return safetensors.torch.save({NAME: rows})


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Descriptions and contents; every one of them must be refused for a backbone of width 32."""
    body = bytes(4 * 4 * WIDTH)
    good = field([4, WIDTH])
    saved = good_file()
    yield "empty", b""
    yield "seven bytes", b"\0" * 7
    yield "only a length", struct.pack("<Q", 10)
    yield "a pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "a zip, as torch.save writes", b"PK\x03\x04" + bytes(200)
    yield (
        "a numpy file",
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 32), }" + body,
    )
    yield "text", b"hello, this is not a tensor file at all"
    yield "NaN", _rows_with(float("nan"))
    yield "infinity", _rows_with(float("inf"))
    yield "minus infinity", _rows_with(float("-inf"))
    yield "NaN in bfloat16", _rows_with(float("nan"), torch.bfloat16)
    yield "infinity in float16", _rows_with(float("inf"), torch.float16)
    yield "narrow", safetensors.torch.save({NAME: torch.zeros(4, WIDTH - 1)})
    yield "wide", safetensors.torch.save({NAME: torch.zeros(4, WIDTH + 1)})
    yield "transposed", safetensors.torch.save({NAME: torch.zeros(WIDTH, 4)})
    yield "one dimension", safetensors.torch.save({NAME: torch.zeros(WIDTH)})
    yield "three dimensions", safetensors.torch.save({NAME: torch.zeros(1, 4, WIDTH)})
    yield "sixty dimensions", assemble({NAME: field([1] * 59 + [4 * WIDTH])}, body)
    yield "no dimension", assemble({NAME: field([], end=4)}, bytes(4))
    yield "no rows", safetensors.torch.save({NAME: torch.zeros(0, WIDTH)})
    yield "as many rows as the model has positions", safetensors.torch.save({NAME: torch.zeros(512, WIDTH)})
    yield "too many rows", safetensors.torch.save({NAME: torch.zeros(1025, WIDTH)})
    yield "float64", safetensors.torch.save({NAME: torch.zeros(4, WIDTH, dtype=torch.float64)})
    yield "int32", safetensors.torch.save({NAME: torch.zeros(4, WIDTH, dtype=torch.int32)})
    yield "bool", safetensors.torch.save({NAME: torch.zeros(4, WIDTH, dtype=torch.bool)})
    yield "float8", safetensors.torch.save({NAME: torch.zeros(4, WIDTH).to(torch.float8_e4m3fn)})
    yield "unknown dtype", assemble({NAME: field([4, WIDTH], dtype="Q32")}, body)
    yield "dtype is a list", assemble({NAME: field([4, WIDTH], dtype=["F32"])}, body)
    yield "dtype is null", assemble({NAME: field([4, WIDTH], dtype=None)}, body)
    yield "another name", safetensors.torch.save({"prefix": torch.zeros(4, WIDTH)})
    yield "a path for a name", safetensors.torch.save({"../../etc/x": torch.zeros(4, WIDTH)})
    yield "an empty name", assemble({"": good}, body)
    yield "no tensor", safetensors.torch.save({})
    yield "a second tensor", safetensors.torch.save({NAME: torch.zeros(4, WIDTH), "b": torch.zeros(1)})
    yield "a second empty tensor", assemble({NAME: good, "b": field([0], begin=512, end=512)}, body)
    empty = ':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    million = ",".join(f'"{i}"{empty}' for i in range(1_000_000))
    yield "a million tensors", assemble(b"{" + million.encode() + b"}", b"")
    yield "200,000 tensors", assemble(b"{" + million[: million.index(',"200000"')].encode() + b"}", b"")
    yield "a header of 15 MB", assemble(json.dumps({NAME: good}).encode() + b" " * 15_000_000, body)
    yield "a header of 100 MB", assemble(b"{" + b" " * 100_000_000 + b"}", b"")
    yield "a header of 17 KiB", assemble(json.dumps({NAME: good}).encode() + b" " * 17 * 1024, body)
    yield "metadata of 5 KiB", assemble({"__metadata__": {"a": "b" * 5 * 1024}, NAME: good}, body)
    yield "metadata that is no string", assemble({"__metadata__": {"a": 1}, NAME: good}, body)
    yield "metadata that is a list", assemble({"__metadata__": ["a"], NAME: good}, body)
    yield "metadata with half a surrogate pair", assemble({"__metadata__": {"a": "\ud800"}, NAME: good}, body)
    text = json.dumps(good)
    yield "the name twice", assemble(f'{{"{NAME}": {text}, "{NAME}": {text}}}'.encode(), body)
    yield (
        "the name twice, once escaped",
        assemble(f'{{"{NAME}": {text}, "\\u0070rompt_embeddings": {text}}}'.encode(), body),
    )
    yield "metadata twice", assemble(f'{{"__metadata__": {{}}, "__metadata__": {{}}, "{NAME}": {text}}}'.encode(), body)
    yield "the dtype twice", assemble(f'{{"{NAME}": {{"dtype": "F16", {text[1:]}}}'.encode(), body)
    yield "an unknown field", assemble({NAME: {**good, "strides": [1, 2]}}, body)
    yield "no shape", assemble({NAME: {"dtype": "F32", "data_offsets": [0, 512]}}, body)
    yield "a tensor that is a list", assemble({NAME: [1, 2]}, body)
    yield "a tensor that is null", assemble({NAME: None}, body)
    yield "a header that is a list", assemble(b"[1]", body)
    yield "a header that is a number", assemble(b"1", body)
    yield "a header that is no JSON", assemble(b"{hello}", body)
    yield "an empty header", assemble(b"", body)
    yield "a header that begins with a space", assemble(b" " + json.dumps({NAME: good}).encode(), body)
    yield "a header that ends in zeros", assemble(json.dumps({NAME: good}).encode() + b"\0\0", body)
    yield "a header with more after its object", assemble(json.dumps({NAME: good}).encode() + b"{}", body)
    yield "a header in UTF-16", assemble(json.dumps({NAME: good}).encode("utf-16"), body)
    yield "a header in Latin-1", assemble(b'{"\xff\xfe": 1}', body)
    yield "a header with a byte order mark", assemble(b"\xef\xbb\xbf" + json.dumps({NAME: good}).encode(), body)
    yield "brackets nested 8,000 deep", assemble(b'{"a":' + b"[" * 8_000 + b"]" * 8_000 + b"}", body)
    yield "braces nested 2,700 deep", assemble(b'{"a":' * 2_700 + b"1" + b"}" * 2_700, body)
    yield "brackets never closed", assemble(b'{"a":' + b"[" * 16_000, body)
    yield (
        "a number of 15,000 digits",
        assemble(f'{{"{NAME}": {{"dtype": "F32", "shape": [{"9" * 15_000}]}}}}'.encode(), body),
    )
    yield (
        "a number of 4,000 digits",
        assemble(f'{{"{NAME}": {{"dtype": "F32", "shape": [{"9" * 4_000}]}}}}'.encode(), body),
    )
    yield "a shape that overflows 64 bits", assemble({NAME: field([2**62, 4], end=512)}, body)
    yield "a shape of negatives", assemble({NAME: field([-4, -WIDTH], end=512)}, body)
    yield "a shape of floats", assemble({NAME: field([4.0, 32.0], end=512)}, body)
    yield "a shape of booleans", assemble({NAME: field([True, WIDTH], end=128)}, bytes(128))
    yield "a shape of strings", assemble({NAME: field(["4", "32"], end=512)}, body)
    yield "a shape that is null", assemble({NAME: {**good, "shape": None}}, body)
    yield "NaN in the header", assemble(f'{{"{NAME}": {{"dtype": "F32", "shape": [NaN, 32]}}}}'.encode(), body)
    yield (
        "a number in exponent form",
        assemble(text.join([f'{{"{NAME}": ', "}"]).replace("512", "512e0").encode(), body),
    )
    yield "minus zero", assemble(text.join([f'{{"{NAME}": ', "}"]).replace("[0,", "[-0,").encode(), body)
    yield "offsets beyond the file", assemble({NAME: field([4, WIDTH], end=1024)}, body)
    yield "offsets backwards", assemble({NAME: field([4, WIDTH], begin=512, end=0)}, body)
    yield "offsets that begin late", assemble({NAME: field([4, WIDTH], begin=4, end=516)}, body + bytes(4))
    yield "one offset", assemble({NAME: {**good, "data_offsets": [0]}}, body)
    yield "three offsets", assemble({NAME: {**good, "data_offsets": [0, 512, 512]}}, body)
    yield "offsets smaller than the shape", assemble({NAME: field([4, WIDTH], end=508)}, body[:508])
    yield "a missing byte", saved[:-1]
    yield "a trailing byte", saved + b"\0"
    yield "cut in the middle", saved[: len(saved) // 2]
    yield "cut in the header", saved[:40]
    yield "a header longer than the file", assemble({NAME: good}, body, num_header_bytes=10_000)
    yield "a header of 2^63 bytes", assemble({NAME: good}, body, num_header_bytes=2**63)
    yield "a header of 2^64 - 1 bytes", assemble({NAME: good}, body, num_header_bytes=2**64 - 1)
    yield "a header of no bytes", assemble({NAME: good}, body, num_header_bytes=0)
    yield "a header one byte short", assemble({NAME: good}, body, num_header_bytes=len(json.dumps({NAME: good})) - 1)
    yield "17 MiB", assemble({NAME: field([131_072, WIDTH])}, bytes(4 * 131_072 * WIDTH + 2**20))
    yield "16 MiB of rows", assemble({NAME: field([131_000, WIDTH])}, bytes(4 * 131_000 * WIDTH))
