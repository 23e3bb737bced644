"""The Triton kernel is the reference. Without a CUDA device Triton interprets it: same code, no compiler, no speed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from app.model.attention import attend_reference, largest_error
from tests.model.test_attention import make_batch

pytest.importorskip("triton", reason="needs Triton, which has wheels for Linux only")

from app.model.cuda.triton_attention import (
    MAX_ROWS,
    MIN_ROWS,
    _num_splits,
    _rows,
    attend_triton,
)

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(query, batch):
    cache = batch.kv_cache
    blocks = cache.blocks.to(DEVICE)
    cache.blocks, cache.layers = blocks, [(layer[0], layer[1]) for layer in blocks]
    return query.to(DEVICE), dataclasses.replace(batch, block_tables=batch.block_tables.to(DEVICE),
                                                 slots=batch.slots.to(DEVICE))  # fmt: skip


# rows that only pad the kernel's product divide nought by nought
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (9, 3), (6, 1)])
@pytest.mark.parametrize(
    ("query_lens", "num_cached"),
    [([1, 1, 1], [0, 9, 200]), ([1, 1, 3, 7, 2], [9, 17, 0, 5, 16]), ([70], [33])],
    ids=["one token each", "mixed", "a long chunk"],
)
def test_the_kernel_is_the_reference(
    query_lens: list[int], num_cached: list[int], num_heads: int, num_kv_heads: int, window: int | None
) -> None:
    for block_size in (1, 16):
        query, batch = on_device(
            *make_batch(query_lens, num_cached, num_heads=num_heads, num_kv_heads=num_kv_heads, block_size=block_size)
        )
        arguments = (query, *batch.kv_cache.layers[0], batch, 0.4, window)
        torch.testing.assert_close(attend_triton(*arguments), attend_reference(*arguments), atol=1e-5, rtol=1e-5)


def test_what_lies_after_the_end_of_a_sequence_changes_no_bit() -> None:
    query, batch = on_device(*make_batch([1, 1], [4, 40], num_heads=4, num_kv_heads=2, block_size=16))
    keys, values = batch.kv_cache.layers[0]
    clean = attend_triton(query, keys, values, batch, 0.4, None)
    last = int(batch.block_tables[0, 0])
    for blocks in (keys, values):
        blocks[last, 5:] = torch.nan
        blocks[0] = torch.nan
    assert torch.equal(attend_triton(query, keys, values, batch, 0.4, None), clean)


def test_true_lengths_on_the_device_stand_over_what_they_can_become() -> None:
    query, batch = on_device(*make_batch([1, 1], [4, 40], num_heads=4, num_kv_heads=2, block_size=16))
    wanted = attend_reference(query, *batch.kv_cache.layers[0], batch, 0.4, None)
    true_lens = torch.tensor(batch.kv_lens, dtype=torch.int32, device=DEVICE)
    bounded = dataclasses.replace(batch, kv_lens=[48, 48], true_kv_lens=true_lens, memo={})
    found = attend_triton(query, *batch.kv_cache.layers[0], bounded, 0.4, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cannot compute with bfloat16
def test_the_check_at_the_start_passes(dtype: torch.dtype) -> None:
    assert largest_error(attend_triton, DEVICE, dtype, 64) < (1e-5 if dtype == torch.float32 else 0.01)


def test_keys_are_split_only_where_programs_are_few() -> None:
    assert [_num_splits(num_programs, 8192) for num_programs in (1, 8, 64, 132, 512)] == [32, 32, 4, 2, 1]
    assert _num_splits(8, 64) == 1
    assert _num_splits(8, 300) == 4


@pytest.mark.parametrize("group", [1, 3, 4, 8, 71])
def test_a_product_holds_whole_tokens_and_suits_tensor_cores(group: int) -> None:
    for is_decode in (True, False):
        num_rows, num_queries = _rows(group, is_decode=is_decode)
        assert num_queries * group <= num_rows
        assert num_rows >= (MIN_ROWS if is_decode else MAX_ROWS)
