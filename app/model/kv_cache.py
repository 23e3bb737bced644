"""KVCache: the tensors that hold the keys and values of every sequence, cut into blocks; and the way to the device."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class KVShape:
    """What one token leaves in the cache: in each of `num_layers` layers two (num_kv_heads, head_dim) tensors."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def row_size(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim

    def num_bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.row_size * dtype.itemsize


class KVCache:
    """Per layer a pair of (num_blocks, block_size, num_kv_heads, head_dim) tensors.

    Block 0 belongs to no sequence: block tables are padded with it, so it must stay finite. The layout is that of
    `torch.nn.attention.varlen.varlen_attn(block_table=...)`.
    """

    def __init__(
        self, shape: KVShape, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        size = (shape.num_layers, 2, num_blocks, block_size, shape.num_kv_heads, shape.head_dim)
        self.blocks = _zeros(size, dtype, device)
        self.layers = [(layer[0], layer[1]) for layer in self.blocks]

    def load_rows(self, slots: Sequence[int], rows: torch.Tensor) -> None:
        """Put the keys and values of a prompt in place: those of prefix tuning, or those computed before and stored.

        Args:
            slots: block * block_size + offset of each row.
            rows: (num_tokens, num_layers * 2 * num_kv_heads * head_dim), K0, V0, K1, V1, ... (`PeftModel.get_prompt`).
        """
        num_layers, _, _, _, num_kv_heads, head_dim = self.blocks.shape
        values = to_device(rows, self.blocks.device).view(-1, num_layers, 2, num_kv_heads, head_dim)
        tokens, first = self.blocks.flatten(2, 3), 0
        for run in _runs(slots):
            tokens[:, :, run.start : run.stop] = values[first : first + len(run)].permute(1, 2, 0, 3, 4)
            first += len(run)

    def copy_rows(self, slots: Sequence[int]) -> torch.Tensor:
        """What `load_rows` would put in these slots, in the cache's dtype, on its device."""
        tokens = self.blocks.flatten(2, 3)
        runs = [tokens[:, :, run.start : run.stop].permute(2, 0, 1, 3, 4) for run in _runs(slots)]
        return torch.cat(runs).flatten(1)

    def clear(self, block_ids: list[int]) -> None:
        """Zero blocks that get a new owner: masked attention still multiplies what stands there, and 0 * NaN is NaN."""
        self.blocks.index_fill_(2, to_device(block_ids, self.blocks.device), 0)


def _runs(slots: Sequence[int]) -> Iterator[range]:
    """Slots that follow each other, together: to copy them one by one takes twice to four times as long."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield range(slots[start], slots[end - 1] + 1)
            start = end


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As `torch.zeros`; in the host's memory on huge pages, if the system has them.

    A decode step reads blocks from all over the cache, and each of them lies on other pages: with pages of 4 KiB it
    waits for their addresses too.
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):  # only Linux has the flag
        return torch.zeros(size, dtype=dtype, device=device)
    # private: shared memory gets huge pages only if `shmem_enabled` says so, which it does not by default
    memory = mmap.mmap(-1, math.prod(size) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # not every Linux has the pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(size)


def to_device(
    values: torch.Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """A tensor of the host's as it is, or numbers or rows of them as a tensor of this dtype, on the device.

    A copy from ordinary memory, or one that may not be deferred, would make the host wait for all the device has to do.
    """
    host = values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
