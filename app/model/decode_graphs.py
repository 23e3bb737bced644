"""DecodeGraphs: a forward in which every sequence adds one token, from inputs at fixed addresses.

A decode step of a small batch is hundreds of kernels that each take a few microseconds, and launching them one by one
takes longer. A CUDA graph launches them all at once, but only with the sizes and addresses it was captured with. So the
step is computed for the next larger of a few numbers of rows, as nano-vllm and vLLM do; the added rows read and write
the null block, and what they compute is not read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.model.attention import Attend, AttentionBatch
from app.model.kv_cache import KVCache, to_device

Forward = Callable[[torch.Tensor, torch.Tensor, AttentionBatch], torch.Tensor]
"""Ids (num_tokens,) and positions (num_tokens,), int64, and the batch, to logits (num_tokens, vocab_size)."""
Replay = Callable[[int], None]
"""Computes that many rows, one of the buckets, from buffer to buffer."""

SMALL_BUCKETS = (1, 2, 4, 8)
BUCKET_STEP = 16


@dataclass(frozen=True)
class PackedRows:
    """Tokens that a step computes, one after the other; of a decode step, one for each sequence.

    Attributes:
        slots: places in the KV cache that each token's keys and values go to.
        kv_lens: tokens each sequence sees, its new ones included.
        block_tables: all of one length.
    """

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    kv_lens: list[int]
    block_tables: list[list[int]]


class DecodeGraphs:
    """Owns inputs and logits. What computes between them is what `capture` makes of the plain forward.

    Args:
        capture: see `Kernels.capture`.
        vocab_size: width of the logits.
        max_num_rows: sequences of the largest step.
        max_num_tokens: tokens of the longest sequence.

    Raises: RuntimeError: the forward waits for the device, or does something else that no graph can hold.
    """

    def __init__(
        self,
        forward: Forward,
        kv_cache: KVCache,
        attend: Attend,
        *,
        capture: Callable[[Replay, Sequence[int]], Replay],
        vocab_size: int,
        max_num_rows: int,
        max_num_tokens: int,
    ) -> None:
        device = kv_cache.blocks.device
        self.buckets = buckets_up_to(max_num_rows)
        self._forward = forward
        self._kv_cache = kv_cache
        self._attend = attend
        self._max_num_tokens = max_num_tokens
        self._ids = torch.zeros(max_num_rows, dtype=torch.int64, device=device)
        self._places = torch.zeros((2, max_num_rows), dtype=torch.int64, device=device)
        self._kv_lens = torch.ones(max_num_rows, dtype=torch.int32, device=device)
        width = -(-max_num_tokens // kv_cache.block_size)
        self._block_tables = torch.zeros((max_num_rows, width), dtype=torch.int32, device=device)
        self._logits = torch.empty((max_num_rows, vocab_size), dtype=torch.float32, device=device)
        self._replay = capture(self._compute, self.buckets)

    def run(self, rows: PackedRows, put_late: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """(num_rows, vocab_size) float32, there until the next call.

        Args:
            put_late: writes ids that only the device knows yet over those of `rows`, given the buffer of all ids.
        """
        num_rows = len(rows.token_ids)
        bucket = self.buckets[bisect_left(self.buckets, num_rows)]
        self._fill(rows, bucket)
        put_late(self._ids)
        self._replay(bucket)
        return self._logits[:num_rows]

    def _fill(self, rows: PackedRows, bucket: int) -> None:
        """Rows after the last get id 0 at position 0, which sees itself, in the null block."""
        device, num_more = self._ids.device, bucket - len(rows.token_ids)
        zeros, width = [0] * num_more, len(rows.block_tables[0])
        self._ids[:bucket] = to_device([*rows.token_ids, *zeros], device)
        self._places[:, :bucket] = to_device([[*rows.positions, *zeros], [*rows.slots, *zeros]], device)
        self._kv_lens[:bucket] = to_device([*rows.kv_lens, *[1] * num_more], device, torch.int32)
        self._block_tables[:bucket].zero_()  # an implementation may read, and mask, what follows a row's end
        self._block_tables[: len(rows.block_tables), :width] = to_device(rows.block_tables, device, torch.int32)

    def _compute(self, num_rows: int) -> None:
        positions, slots = self._places[:, :num_rows]
        batch = AttentionBatch(
            kv_cache=self._kv_cache,
            attend=self._attend,
            slots=slots,
            query_lens=[1] * num_rows,
            kv_lens=[self._max_num_tokens] * num_rows,
            block_tables=self._block_tables[:num_rows],
            true_kv_lens=self._kv_lens[:num_rows],
        )
        self._logits[:num_rows] = self._forward(self._ids[:num_rows], positions, batch)


def buckets_up_to(max_num_rows: int) -> list[int]:
    """Numbers of rows there are graphs for, ascending: nano-vllm's, and the largest."""
    larger = range(BUCKET_STEP, max_num_rows, BUCKET_STEP)
    return [*(size for size in (*SMALL_BUCKETS, *larger) if size < max_num_rows), max_num_rows]
