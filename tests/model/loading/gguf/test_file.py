"""What is no whole .gguf file that can be served is refused by its header: at once, in one sentence, without torch."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from app.errors import InvalidInput, UnsupportedModel
from app.model.loading.gguf.file import GgufFile, can_dequantize
from app.model.loading.source import find_model
from tests.support.gguf_files import build_model, write_gguf

TENSORS_AT = 8
"""Where the header says how many tensors there are."""
FIRST_KEY_AT = 24
"""Where it says how long its first text is."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, build_model("llama"), types=lambda _: Type.Q8_0)
    return path


def write(folder: Path, **metadata: Any) -> Path:
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    write_gguf(folder / "tiny.gguf", build_model("llama"), metadata=keys)
    return folder / "tiny.gguf"


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        find_model(str(path), path.parent)
    assert caught.value.param == "model"
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_header_is_read_as_package_gguf_reads_it(tiny: Path) -> None:
    own, theirs = GgufFile.read(tiny), gguf.GGUFReader(tiny)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert own.metadata == fields
    assert [tensor.name for tensor in own.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, other in zip(own.tensors, theirs.tensors, strict=True):
        assert (mine.shape, mine.type, mine.start) == (tuple(other.shape[::-1]), other.tensor_type, other.data_offset)
        assert mine.num_bytes == other.n_bytes
        wanted = gguf.dequantize(other.data, other.tensor_type).reshape(-1)
        assert np.array_equal(own.read_values(mine, 0, wanted.size), wanted)
        assert np.array_equal(own.read_values(mine, 32, 32), wanted[32:64])
    assert own.num_parameters == sum(tensor.n_elements for tensor in theirs.tensors)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.6, 0.99999])
def test_a_file_that_was_not_fetched_whole_is_refused(share: float, tiny: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    assert refusal(tmp_path / "cut.gguf").startswith("cut.gguf is damaged or was not fetched whole: ")


def test_no_cut_and_no_changed_byte_of_a_header_does_more_than_refuse(tiny: Path, tmp_path: Path) -> None:
    """A reader of lengths and counts must trust none of them."""
    content, rng = bytearray(tiny.read_bytes()), np.random.default_rng(0)
    header = GgufFile.read(tiny).tensors[0].start
    for place in rng.integers(0, header, 300):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "changed.gguf").write_bytes(changed)
        with suppress(InvalidInput):
            find_model(str(tmp_path / "changed.gguf"), tmp_path)


@pytest.mark.parametrize("count", [2**32, 2**62])
def test_a_count_beyond_the_file_is_not_believed(count: int, tiny: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    struct.pack_into("<Q", content, TENSORS_AT, count)
    (tmp_path / "many.gguf").write_bytes(content)
    assert "many.gguf is damaged" in refusal(tmp_path / "many.gguf")
    struct.pack_into("<Q", content, TENSORS_AT, 1)
    struct.pack_into("<Q", content, FIRST_KEY_AT, count * 2)
    (tmp_path / "long.gguf").write_bytes(content)
    assert "long.gguf is damaged" in refusal(tmp_path / "long.gguf")


def test_what_is_no_gguf_file_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>" * 9)
    assert refusal(tmp_path / "page.gguf") == "page.gguf is no .gguf file: it does not begin with GGUF"


def test_another_version_and_another_byte_order_are_named(tiny: Path, tmp_path: Path) -> None:
    for version in (1, 4, 3 << 24):
        content = bytearray(tiny.read_bytes())
        struct.pack_into("<I", content, 4, version)
        (tmp_path / "new.gguf").write_bytes(content)
        assert f"new.gguf is of version {version}" in refusal(tmp_path / "new.gguf")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general__architecture": "mamba"}, "is of the architecture mamba, which is not read from .gguf files; "),
        ({"llama__context_length": None}, "lacks llama.context_length, so it is no whole language model"),
        ({"llama__attention__head_count": 0}, "lacks llama.attention.head_count"),
        ({"llama__block_count": "two"}, "lacks llama.block_count"),
        ({"llama__rope__scaling__type": "yarn"}, "scales its positions (yarn), which is not read from .gguf files"),
        ({"llama__rope__dimension_count": 8, "llama__attention__key_length": 16}, "turns 8 of 16 dimensions"),
        ({"llama__attention__causal": False}, "is an encoder; softswap serves decoders"),
        ({"split__count": 3}, "is one of 3 parts; join them with llama.cpp's `llama-gguf-split --merge`"),
        ({"tokenizer__ggml__tokens": None}, "has no tokenizer; serve the model from its folder of safetensors"),
        ({"tokenizer__ggml__model": "bert"}, "has a tokenizer of kind bert, which is not read from .gguf files"),
        ({"tokenizer__ggml__pre": "kimi-k2"}, "cuts texts in a way (kimi-k2) that is not read from .gguf files"),
        ({"tokenizer__ggml__merges": None}, "lacks tokenizer.ggml.merges, so texts cannot be encoded"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refusal(write(tmp_path, **metadata))


def test_a_type_that_is_not_dequantized_is_named_with_its_tensor(tiny: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    name = b"token_embd.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    for kind, said in ((Type.Q8_1, "type Q8_1"), (4, "type number 4"), (77, "type number 77")):
        changed = bytearray(content)
        struct.pack_into("<I", changed, place, kind)
        (tmp_path / "odd.gguf").write_bytes(changed)
        with pytest.raises(UnsupportedModel, match=f"odd.gguf keeps token_embd.weight in {said}, which package gguf"):
            find_model(str(tmp_path / "odd.gguf"), tmp_path)
    assert all(map(can_dequantize, (Type.F32, Type.BF16, Type.Q4_1, Type.Q4_K, Type.IQ4_XS, Type.MXFP4)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(tiny.read_bytes())
    (tmp_path / "mine.gguf").chmod(0)
    assert "mine.gguf cannot be read (Permission denied)" in refusal(tmp_path / "mine.gguf")


def test_looking_at_a_file_loads_neither_torch_nor_transformers(tiny: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from app.model.loading.source import find_model\n"
        f"print(find_model({str(tiny)!r}, Path()).name, {{'torch', 'transformers', 'httpx'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "tiny set()\n"
