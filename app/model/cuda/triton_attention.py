"""Attention over KV blocks as one Triton kernel, for CUDA devices whose torch has no FlashAttention over blocks.

torch 2.11's `varlen_attn` takes no block tables, and that of later ones takes blocks of a multiple of 256 tokens only;
this takes any. A program computes the queries of a few tokens of one sequence for all heads that share a key head:
FlashAttention-2's loop (Dao 2023, algorithm 1) with keys found through the block table, as in vLLM's
`unified_attention`. If that makes too few programs to fill the device, each sequence's keys are split among several
and joined afterwards (Flash-Decoding, Dao et al. 2023).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.model.attention import AttentionBatch

MAX_ROWS = 64
"""Rows of a program's product, queries times heads, if sequences add more than one token."""
MIN_ROWS = 16
"""The smallest product that tensor cores compute; smaller ones are padded."""
NUM_KEYS = 64
"""Keys of a program's product."""
NUM_PROGRAMS = 264
"""As many fill a large device twice (132 multiprocessors); with fewer, keys are split."""
MAX_SPLITS = 32


@triton.jit(do_not_specialize=["window", "num_tokens"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, keys, values, output, partial, weights, block_tables, runs,
    scale, window, num_tokens,
    query_token, query_head, kv_block, kv_token, kv_head, table_row,
    num_splits: tl.constexpr, group: tl.constexpr, num_rows: tl.constexpr, head_dim: tl.constexpr,
    width: tl.constexpr, block_size: tl.constexpr, num_keys: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """`runs`: (num_runs, 4) int32: first packed token, sequence, keys the first query sees, number of queries."""
    run, kv_head_index, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_token = tl.load(runs + 4 * run)
    sequence = tl.load(runs + 4 * run + 1)
    num_seen = tl.load(runs + 4 * run + 2)
    num_queries = tl.load(runs + 4 * run + 3)

    rows = tl.arange(0, num_rows)
    dims = tl.arange(0, width)
    token, head = first_token + rows // group, kv_head_index * group + rows % group
    is_row = rows // group < num_queries
    is_dim = dims < head_dim
    place = token[:, None] * query_token + head[:, None] * query_head + dims[None, :]
    q = tl.load(query + place, mask=is_row[:, None] & is_dim[None, :], other=0.0)
    row_end = num_seen + rows // group

    # what the last query sees ends the keys, what the first one sees begins them
    end = num_seen + num_queries - 1
    begin = tl.maximum(num_seen - window, 0) // num_keys * num_keys
    share = tl.cdiv(tl.cdiv(end - begin, num_keys), num_splits) * num_keys
    start = begin + split * share
    stop = tl.minimum(end, start + share)

    largest = tl.full([num_rows], float("-inf"), tl.float32)
    total = tl.zeros([num_rows], tl.float32)
    sums = tl.zeros([num_rows, width], tl.float32)
    for position in range(start, stop, num_keys):
        at = position + tl.arange(0, num_keys)
        is_key = at < stop
        block = tl.load(block_tables + sequence * table_row + at // block_size, mask=is_key, other=0)
        offset = block.to(tl.int64) * kv_block + (at % block_size) * kv_token + kv_head_index * kv_head
        is_value = is_key[:, None] & is_dim[None, :]
        k = tl.load(keys + offset[:, None] + dims[None, :], mask=is_value, other=0.0)
        v = tl.load(values + offset[:, None] + dims[None, :], mask=is_value, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        is_visible = (at[None, :] < row_end[:, None]) & (at[None, :] >= row_end[:, None] - window) & is_key[None, :]
        scores = tl.where(is_visible, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # a row that has seen no key yet must not subtract infinity from infinity
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        faded = tl.exp(largest - base)
        p = tl.exp(scores - base[:, None])
        total = total * faded + tl.sum(p, 1)
        sums = sums * faded[:, None] + tl.dot(p.to(v.dtype), v, input_precision=precision)
        largest = new_largest

    is_out = is_row[:, None] & is_dim[None, :]
    num_heads = tl.num_programs(1) * group
    row_place = token * num_heads + head
    if num_splits == 1:  # rows that only pad the product are nought by nought, and not stored
        out = sums / total[:, None]
        tl.store(output + row_place[:, None] * head_dim + dims[None, :], out.to(output.dtype.element_ty), mask=is_out)
    else:
        row_place = split * num_tokens * num_heads + row_place
        tl.store(partial + row_place[:, None] * head_dim + dims[None, :], sums, mask=is_out)
        tl.store(weights + 2 * row_place, largest, mask=is_row)
        tl.store(weights + 2 * row_place + 1, total, mask=is_row)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    partial, weights, output, num_rows,
    num_splits: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """One row of the output, a token's head, from what each split left of it."""
    row = tl.program_id(0)
    dims = tl.arange(0, width)
    is_dim = dims < head_dim
    place = tl.arange(0, num_splits) * num_rows + row
    largest = tl.load(weights + 2 * place)
    total = tl.load(weights + 2 * place + 1)
    sums = tl.load(partial + place[:, None] * head_dim + dims[None, :], mask=is_dim[None, :], other=0.0)
    share = tl.exp(largest - tl.max(largest, 0))
    out = tl.sum(sums * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(output + row * head_dim + dims, out.to(output.dtype.element_ty), mask=is_dim)


def attend_triton(
    query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float, window: int | None
) -> Tensor:
    """The same as `attend_reference`."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    assert query.stride(2) == keys.stride(3) == values.stride(3) == 1
    assert keys.stride() == values.stride()
    group = num_heads // num_kv_heads
    is_decode = batch.num_decodes == len(batch.query_lens)
    num_rows, num_queries = _rows(group, is_decode=is_decode)
    if is_decode and ("runs", 1) not in batch.memo:
        batch.memo["runs", 1] = _decode_runs(batch)
    runs = batch.runs(num_queries)
    num_splits = _num_splits(len(runs) * num_kv_heads, max(batch.kv_lens))
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    num_parts = num_splits * num_tokens * num_heads if num_splits > 1 else 1
    partial = query.new_empty((num_parts, head_dim), dtype=torch.float32)
    weights = query.new_empty((num_parts, 2), dtype=torch.float32)
    width = max(MIN_ROWS, triton.next_power_of_2(head_dim))
    _attend[len(runs), num_kv_heads, num_splits](
        query, keys, values, output, partial, weights, batch.block_tables, runs,
        scale, 2**30 if window is None else window, num_tokens,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), keys.stride(2), batch.block_tables.stride(0),
        num_splits=num_splits, group=group, num_rows=num_rows, head_dim=head_dim, width=width,
        block_size=keys.shape[1], num_keys=NUM_KEYS,
        precision="ieee" if query.dtype == torch.float32 else "tf32",
    )  # fmt: skip
    if num_splits > 1:
        _join[(num_tokens * num_heads,)](
            partial, weights, output, num_tokens * num_heads,
            num_splits=num_splits, head_dim=head_dim, width=width,
        )  # fmt: skip
    return output


def _rows(group: int, *, is_decode: bool) -> tuple[int, int]:
    """(rows of a program's product, tokens it holds the queries of)."""
    num_rows = max(MIN_ROWS if is_decode else MAX_ROWS, triton.next_power_of_2(group))
    return num_rows, 1 if is_decode else num_rows // group


def _num_splits(num_programs: int, max_kv_len: int) -> int:
    """A power of two, since each number is a kernel of its own."""
    wanted = min(NUM_PROGRAMS / num_programs, max_kv_len / NUM_KEYS, MAX_SPLITS)
    return int(2 ** math.floor(math.log2(max(1.0, wanted))))


def _decode_runs(batch: AttentionBatch) -> Tensor:
    """The same as `batch.runs` if every sequence adds one token, from lengths that only the device may know."""
    order = torch.arange(batch.num_decodes, dtype=torch.int32, device=batch.block_tables.device)
    return torch.stack([order, order, batch.kv_lens_tensor, torch.ones_like(order)], 1)
