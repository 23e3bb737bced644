from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from app.errors import UnsupportedModel
from app.model.attention import (
    AttentionBatch,
    attend_reference,
    attend_sdpa,
    attention_forward,
    register_attention,
)
from app.model.cuda.kernels import attend_varlen
from app.model.kv_cache import KVCache, KVShape
from tests.support.compiled import attend_compiled, needs_compiler
from tests.support.models import tiny_backbone

HEAD_DIM = 8
CPU = torch.device("cpu")
COMPILED = pytest.param(attend_compiled, marks=needs_compiler)


def make_batch(
    query_lens: list[int],
    num_cached: list[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    block_size: int,
    seed: int = 0,
    head_dim: int = HEAD_DIM,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, AttentionBatch]:
    """Random queries on random blocks in random places; the null block holds nothing."""
    torch.manual_seed(seed)
    kv_lens = [new + cached for new, cached in zip(query_lens, num_cached, strict=True)]
    num_blocks = [-(-length // block_size) for length in kv_lens]
    order = (torch.randperm(sum(num_blocks)) + 1).to(torch.int32)
    tables = torch.zeros(len(kv_lens), max(num_blocks), dtype=torch.int32)
    for row, blocks in zip(tables, torch.split(order, num_blocks), strict=True):
        row[: len(blocks)] = blocks
    cache = KVCache(
        KVShape(1, num_kv_heads, head_dim),
        num_blocks=1 + sum(num_blocks),
        block_size=block_size,
        dtype=dtype,
        device=CPU,
    )
    cache.blocks[:, :, 1:] = torch.randn_like(cache.blocks[:, :, 1:])
    batch = AttentionBatch(cache, attend_sdpa, torch.empty(0), query_lens, kv_lens, tables, [])
    return torch.randn(sum(query_lens), num_heads, head_dim).to(dtype), batch


def plain_attention(query: torch.Tensor, batch: AttentionBatch, scale: float, window: int | None) -> torch.Tensor:
    """Token by token and head by head, in double precision."""
    keys, values = (each.double() for each in batch.kv_cache.layers[0])
    groups = query.shape[1] // keys.shape[2]
    output = torch.zeros_like(query, dtype=torch.float64)
    first = 0
    for i, length in enumerate(batch.query_lens):
        for row in range(length):
            position = batch.kv_lens[i] - length + row
            start = 0 if window is None else max(0, position + 1 - window)
            places = [
                (int(batch.block_tables[i, p // keys.shape[1]]), p % keys.shape[1]) for p in range(start, position + 1)
            ]
            for head in range(query.shape[1]):
                k = torch.stack([keys[block, offset, head // groups] for block, offset in places])
                v = torch.stack([values[block, offset, head // groups] for block, offset in places])
                weights = (k @ query[first + row, head].double() * scale).softmax(0)
                output[first + row, head] = weights @ v
        first += length
    return output.float()


@pytest.mark.parametrize("window", [None, 1, 5, 24])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("attend", [attend_reference, attend_sdpa, COMPILED])
def test_every_implementation_is_plain_attention(
    attend: object, num_heads: int, num_kv_heads: int, window: int | None
) -> None:
    for seed, block_size in enumerate((1, 4, 16)):
        query, batch = make_batch(
            [1, 1, 1, 3, 7, 2],
            [0, 9, 17, 0, 5, 16],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            block_size=block_size,
            seed=seed,
        )
        found = attend(query, *batch.kv_cache.layers[0], batch, 0.4, window)  # type: ignore[operator]
        torch.testing.assert_close(found, plain_attention(query, batch, 0.4, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query_lens", [[1, 1], [4], [1], [5, 2], [130], [1, 9, 130, 3]])
@pytest.mark.parametrize("attend", [attend_sdpa, COMPILED])
def test_batches_of_one_sort_work_too(attend: object, query_lens: list[int]) -> None:
    query, batch = make_batch(query_lens, [3] * len(query_lens), num_heads=4, num_kv_heads=2, block_size=4)
    layer = batch.kv_cache.layers[0]
    found = attend(query, *layer, batch, 0.3, None)  # type: ignore[operator]
    torch.testing.assert_close(found, attend_reference(query, *layer, batch, 0.3, None), atol=1e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 20, 64, 80, 128])
def test_compiled_attention_is_the_reference_for_every_shape(head_dim: int, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for groups in range(1, 9):
        block_size, window = (1, 4, 16, 256)[groups % 4], (None, 1, 30, 64)[groups // 2 % 4]
        query, batch = make_batch(
            [1, 1, 1, 1, 5, 40],
            [0, 31, 32, 300, 70, 3],
            num_heads=2 * groups,
            num_kv_heads=2,
            block_size=block_size,
            seed=groups,
            head_dim=head_dim,
            dtype=dtype,
        )
        arguments = (query, *batch.kv_cache.layers[0], batch, head_dim**-0.5, window)
        found, wanted = attend_compiled(*arguments), attend_reference(*arguments)
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@needs_compiler
@pytest.mark.parametrize("window", [None, 50])
def test_compiled_attention_gives_a_row_the_same_bits_alone_and_among_others(window: int | None) -> None:
    lengths, cached = [1, 1, 1, 7, 20], [99, 0, 250, 40, 5]
    query, batch = make_batch(lengths, cached, num_heads=6, num_kv_heads=2, block_size=4, head_dim=64)
    together = attend_compiled(query, *batch.kv_cache.layers[0], batch, 0.125, window)
    num_threads = torch.get_num_threads()
    for i, (start, end) in enumerate(batch.spans):
        for token in range(start, end):
            # the chunk's last token becomes a decode of its own: chunking must not change a bit either
            alone = dataclasses.replace(
                batch,
                query_lens=[1],
                kv_lens=[batch.kv_lens[i] - (end - 1 - token)],
                block_tables=batch.block_tables[i : i + 1],
                memo={},
            )
            torch.set_num_threads(1 + token % 3)
            try:
                found = attend_compiled(query[token : token + 1], *batch.kv_cache.layers[0], alone, 0.125, window)
            finally:
                torch.set_num_threads(num_threads)
            assert torch.equal(found[0], together[token])


@needs_compiler
def test_compiled_attention_gives_the_same_bits_for_every_block_size() -> None:
    query, one = make_batch([1, 1, 3], [70, 5, 40], num_heads=4, num_kv_heads=2, block_size=1, head_dim=64)
    _, many = make_batch([1, 1, 3], [70, 5, 40], num_heads=4, num_kv_heads=2, block_size=16, head_dim=64)
    for i, kv_len in enumerate(one.kv_lens):
        for position in range(kv_len):
            source, target = one.block_tables[i, position], many.block_tables[i, position // 16]
            many.kv_cache.blocks[:, :, target, position % 16] = one.kv_cache.blocks[:, :, source, 0]
    found = [attend_compiled(query, *batch.kv_cache.layers[0], batch, 0.125, None) for batch in (one, many)]
    assert torch.equal(*found)


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_compiled_attention_hides_no_value_that_is_not_finite(where: str, value: float) -> None:
    query, batch = make_batch([1, 1, 3], [70, 5, 40], num_heads=4, num_kv_heads=2, block_size=4, head_dim=64)
    blocks = {"key": batch.kv_cache.layers[0][0], "value": batch.kv_cache.layers[0][1]}
    place = query[0] if where == "query" else blocks[where][batch.block_tables[0, 3], 1, 0]
    place[..., 9] = value
    found = attend_compiled(query, *batch.kv_cache.layers[0], batch, 0.3, None)
    wanted = attend_reference(query, *batch.kv_cache.layers[0], batch, 0.3, None)
    torch.testing.assert_close(found, wanted, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert found[1:].isfinite().all()


@needs_compiler
def test_compiled_attention_keeps_what_is_tiny_or_far_apart() -> None:
    query, batch = make_batch([1, 1], [70, 200], num_heads=4, num_kv_heads=2, block_size=4, head_dim=64)
    for scale in (0.0, 1e-30, 5.0, 300.0):
        arguments = (query, *batch.kv_cache.layers[0], batch, scale, None)
        torch.testing.assert_close(attend_compiled(*arguments), attend_reference(*arguments), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("attend", [attend_reference, attend_sdpa, COMPILED])
def test_a_row_is_bit_identical_whatever_its_neighbors_hold(attend: object, window: int | None) -> None:
    query, batch = make_batch([1, 1, 1, 4, 6], [9, 4, 17, 3, 8], num_heads=4, num_kv_heads=2, block_size=4)
    own_rows = [slice(1, 2), slice(3, 7)]
    own_blocks = torch.cat([batch.block_tables[1, :2], batch.block_tables[3, :2]]).long()
    outputs = []
    for value in (None, 0.0, 1e30, math.nan, math.inf):
        changed = copy.deepcopy(batch.kv_cache)
        others = torch.tensor([i for i in range(1, changed.blocks.shape[2]) if i not in own_blocks.tolist()])
        neighbors = query.clone()
        if value is not None:
            changed.blocks[:, :, others] = value
            neighbors[[0, 2, 7, 8]] = value
        layer = changed.layers[0] if value is not None else batch.kv_cache.layers[0]
        found = attend(neighbors, *layer, batch, 0.3, window)  # type: ignore[operator]
        outputs.append([found[rows] for rows in own_rows])
    for other in outputs[1:]:
        assert all(torch.equal(first, second) for first, second in zip(outputs[0], other, strict=True))


def test_without_a_batch_attention_is_transformers_own_and_can_be_differentiated() -> None:
    backbone = tiny_backbone("llama")
    plain = copy.deepcopy(backbone.model)
    plain.set_attn_implementation("sdpa")
    embeds = torch.randn(2, 9, backbone.hidden_size).requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    ours = backbone.model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(ours[:, :6], plain(inputs_embeds=embeds, attention_mask=mask).logits[:, :6])
    ours[0, -1].sum().backward()
    assert embeds.grad is not None
    assert float(embeds.grad[0].abs().sum()) > 0
    assert float(embeds.grad[1].abs().sum()) == 0


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_attention_does_not_compute_is_refused(name: str) -> None:
    tensor = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedModel):
        attention_forward(torch.nn.Module(), tensor, tensor, tensor, None, **{name: 1.0})  # type: ignore[arg-type]


def test_registering_again_changes_nothing() -> None:
    register_attention()
    register_attention()
    assert tiny_backbone("llama").model.config._attn_implementation == "softswap"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 24])
def test_flash_attention_over_blocks_is_the_reference(window: int | None) -> None:
    query, batch = make_batch([1, 1, 1, 3, 70], [0, 300, 512, 10, 400], num_heads=8, num_kv_heads=2, block_size=256)
    cache = KVCache(
        KVShape(1, 2, HEAD_DIM),
        num_blocks=batch.kv_cache.blocks.shape[2],
        block_size=256,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    cache.blocks.copy_(batch.kv_cache.blocks)
    on_device = AttentionBatch(
        cache, attend_varlen, torch.empty(0).cuda(), batch.query_lens, batch.kv_lens, batch.block_tables.cuda(), []
    )
    arguments = (query.cuda().bfloat16(), *cache.layers[0], on_device, 0.3, window)
    torch.testing.assert_close(attend_varlen(*arguments), attend_reference(*arguments), atol=2e-2, rtol=2e-2)
