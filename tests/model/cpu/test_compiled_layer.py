from __future__ import annotations

import copy
from pathlib import Path
from shutil import copytree

import pytest
import torch

from app.model.attention import AttentionBatch, attend_reference
from app.model.cpu import compiled_layer
from app.model.cpu.compiled_layer import CompiledLayer, compile_layers
from app.model.cpu.compiler import C_FOLDER, CompilationError
from app.model.kv_cache import KVCache
from tests.support.compiled import needs_compiler
from tests.support.models import ARCHITECTURE_TO_CONFIG, tiny_backbone

pytestmark = needs_compiler
BLOCK_SIZE = 4
ARCHITECTURE_TO_NUM_COMPILED = {"llama": 3, "mistral": 3, "qwen2": 3, "qwen3": 3, "smollm3": 2}


@pytest.mark.parametrize("architecture", ARCHITECTURE_TO_CONFIG)
def test_layers_are_compiled_where_they_compute_what_llamas_do(architecture: str) -> None:
    """SmolLM3 has a layer without positions; Granite scales what Llama does not, in modules of the same names."""
    backbone = tiny_backbone(architecture)
    compiled = compile_layers(backbone.model, backbone.kv_shape)
    assert len(compiled) == ARCHITECTURE_TO_NUM_COMPILED.get(architecture, 0)


def layer_of(dtype: torch.dtype, architecture: str = "qwen3") -> tuple[CompiledLayer, KVCache]:
    """A layer, and a cache of random keys and values."""
    backbone = tiny_backbone(architecture)
    compiled = compile_layers(copy.deepcopy(backbone.model).to(dtype), backbone.kv_shape)[1]
    device = torch.device("cpu")
    cache = KVCache(backbone.kv_shape, num_blocks=60, block_size=BLOCK_SIZE, dtype=dtype, device=device)
    cache.blocks.copy_(torch.randn(cache.blocks.shape, generator=torch.Generator().manual_seed(0)))
    return compiled, cache


def call(
    compiled: CompiledLayer, cache: KVCache, query_lens: list[int], tables: torch.Tensor, *, is_own: bool = False
) -> torch.Tensor:
    """(1, num_tokens, hidden_size): the layer over sequences that see 30 tokens; rows depend on their sequence only."""
    kv_lens = [29 + length for length in query_lens]
    tokens = [(table, 29 + i) for table, length in zip(tables.tolist(), query_lens, strict=True) for i in range(length)]
    slots = torch.tensor([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for table, p in tokens])
    batch = AttentionBatch(cache, attend_reference, slots, query_lens, kv_lens, tables, [])
    angles = torch.tensor([p for _, p in tokens])[:, None] * torch.arange(1, 9).repeat(2) * 0.1
    dtype = cache.blocks.dtype
    rows = [torch.randn(32, generator=torch.Generator().manual_seed(int(slot))) for slot in slots]
    keywords = {"batch": batch, "position_embeddings": (angles.cos()[None].to(dtype), angles.sin()[None].to(dtype))}
    forward = compiled.layer if is_own else compiled.forward
    with torch.inference_mode():
        return forward(torch.stack(rows)[None].to(dtype), attention_mask=None, **keywords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_the_same_to_the_last_bit_among_any_others(dtype: torch.dtype) -> None:
    compiled, cache = layer_of(dtype)
    tables = torch.arange(1, 51, dtype=torch.int32).view(5, 10)
    lengths = [1, 1, 1, 3, 5]
    before = cache.blocks.clone()
    together = call(compiled, cache, lengths, tables)[0].split(lengths)
    for i, length in enumerate(lengths):
        cache.blocks.copy_(before)
        assert torch.equal(call(compiled, cache, [length], tables[i : i + 1])[0], together[i])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_layer_gives_what_it_gives_without_c(num_threads: int) -> None:
    compiled, cache = layer_of(torch.float32)
    tables = torch.arange(1, 51, dtype=torch.int32).view(5, 10)
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        ours = call(compiled, cache, [1, 1, 2, 9, 11], tables)
    finally:
        torch.set_num_threads(threads)
    own = call(compiled, cache, [1, 1, 2, 9, 11], tables, is_own=True)
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-4)


def test_code_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copytree(C_FOLDER, tmp_path / C_FOLDER.name)
    wrong = folder / "layer.c"
    wrong.write_text(wrong.read_text().replace("head[e] = b *", "head[e] = a *"))
    monkeypatch.setattr(compiled_layer, "SOURCES", [folder / source.name for source in compiled_layer.SOURCES])
    monkeypatch.setattr(compiled_layer, "compile_layer", compiled_layer.compile_layer.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backbone = tiny_backbone()
    assert compile_layers(backbone.model, backbone.kv_shape) == []


def test_types_the_c_code_does_not_read_are_refused() -> None:
    backbone = tiny_backbone()
    with pytest.raises(CompilationError, match="does not read"):
        compile_layers(copy.deepcopy(backbone.model).to(torch.float64), backbone.kv_shape)
