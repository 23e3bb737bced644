from __future__ import annotations

import copy
import math

import pytest
import torch

from app.errors import UnsupportedModel
from app.model.attention import (
    AttentionBatch,
    attend_reference,
    attend_sdpa,
    attend_varlen,
    attention_forward,
    choose_attend,
    has_paged_varlen,
    register_attention,
)
from app.model.kv_cache import KVCache, KVShape
from tests.models import tiny_backbone

HEAD_DIM = 8
CPU = torch.device("cpu")


def make_batch(
    query_lens: list[int], num_cached: list[int], *, num_heads: int, num_kv_heads: int, block_size: int, seed: int = 0
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
        KVShape(1, num_kv_heads, HEAD_DIM),
        num_blocks=1 + sum(num_blocks),
        block_size=block_size,
        dtype=torch.float32,
        device=CPU,
    )
    cache.blocks[:, :, 1:] = torch.randn_like(cache.blocks[:, :, 1:])
    batch = AttentionBatch(cache, attend_sdpa, torch.empty(0), query_lens, kv_lens, tables, [])
    return torch.randn(sum(query_lens), num_heads, HEAD_DIM), batch


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
@pytest.mark.parametrize("attend", [attend_reference, attend_sdpa])
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


@pytest.mark.parametrize("query_lens", [[1, 1], [4], [1], [5, 2]])
def test_batches_of_one_sort_work_too(query_lens: list[int]) -> None:
    query, batch = make_batch(query_lens, [3] * len(query_lens), num_heads=4, num_kv_heads=2, block_size=4)
    layer = batch.kv_cache.layers[0]
    torch.testing.assert_close(
        attend_sdpa(query, *layer, batch, 0.3, None), attend_reference(query, *layer, batch, 0.3, None)
    )


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("attend", [attend_reference, attend_sdpa])
def test_a_row_is_bit_identical_whatever_its_neighbours_hold(attend: object, window: int | None) -> None:
    query, batch = make_batch([1, 1, 1, 4, 6], [9, 4, 17, 3, 8], num_heads=4, num_kv_heads=2, block_size=4)
    own_rows = [slice(1, 2), slice(3, 7)]
    own_blocks = torch.cat([batch.block_tables[1, :2], batch.block_tables[3, :2]]).long()
    outputs = []
    for value in (None, 0.0, 1e30, math.nan, math.inf):
        changed = copy.deepcopy(batch.kv_cache)
        others = torch.tensor([i for i in range(1, changed.blocks.shape[2]) if i not in own_blocks.tolist()])
        neighbours = query.clone()
        if value is not None:
            changed.blocks[:, :, others] = value
            neighbours[[0, 2, 7, 8]] = value
        layer = changed.layers[0] if value is not None else batch.kv_cache.layers[0]
        found = attend(neighbours, *layer, batch, 0.3, window)  # type: ignore[operator]
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


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "is_flash"),
    [
        ("cpu", torch.float32, 64, False),
        ("cpu", torch.bfloat16, 64, False),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 512, False),
        ("cuda", torch.bfloat16, 60, False),
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float16, 256, True),
    ],
)
def test_flash_attention_is_chosen_where_it_can_run(
    device: str, dtype: torch.dtype, head_dim: int, is_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    chosen = choose_attend(torch.device(device), dtype, head_dim)
    assert chosen is (attend_varlen if is_flash and has_paged_varlen() else attend_sdpa)


def test_an_older_cuda_device_gets_the_slower_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_attend(torch.device("cuda"), torch.float16, 64) is attend_sdpa


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
