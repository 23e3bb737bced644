"""BlockManager: who holds which block of the KV cache. Knows counts and numbers, no tensors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from app.engine.sequence import Prefix, Segment

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class TailCopy:
    """The first `num_rows` tokens of block `source` are to be copied to block `target`.

    `depth` orders copies of one step: the tail of a prefix must be in place before the tail of what continues it.
    """

    source: int
    target: int
    num_rows: int
    depth: int


class BlockManager:
    """Hands out blocks of `block_size` tokens and takes them back.

    A segment that continues a prefix shares the prefix's full blocks by reference count; the partly filled last one
    is copied, so sharing is exact at any prompt length. Block 0 pads block tables and is never handed out.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ValueError("a cache needs at least two blocks of at least one token")
        self.block_size = block_size
        self.num_blocks = num_blocks - 1
        self._free = deque(range(1, num_blocks))
        self._ref_counts = [0] * num_blocks
        self._fresh: list[int] = []

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, segment: Segment, num_tokens: int) -> int:
        """Free blocks that `allocate` would take."""
        held = len(segment.block_table) or segment.num_parent_tokens // self.block_size
        return max(0, self.num_blocks_for(num_tokens) - held)

    def allocate(self, segment: Segment, num_tokens: int) -> TailCopy | None:
        """Give `segment` the blocks of its first `num_tokens` tokens; enough must be free.

        Returns: the copy that hands on the parent's last block, where that is partly filled and this is the first
        allocation.
        """
        copy = None
        if not segment.block_table and segment.parent is not None:
            copy = self._share(segment, segment.parent)
        while len(segment.block_table) < self.num_blocks_for(num_tokens):
            segment.block_table.append(self._take())
        return copy

    def take_fresh(self) -> list[int]:
        """Blocks handed out since the last call, which still hold what their last owner left there."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def free(self, segment: Segment) -> None:
        """Take all blocks back; what was computed is forgotten."""
        for block in segment.block_table:
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, "a block was given back twice"
            if self._ref_counts[block] == 0:
                self._free.append(block)
        segment.block_table = []
        segment.num_computed_tokens = 0

    def audit(self, segments: list[Segment]) -> None:
        """Check the books against everybody who may hold blocks: nothing is lost, nothing is held twice."""
        counts = [0] * len(self._ref_counts)
        for segment in segments:
            for block in segment.block_table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        assert counts[NULL_BLOCK] == 0, "the null block was handed out"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert all(counts[block] == 0 for block in self._free), "a free block is in use"
        assert len(self._free) + sum(count > 0 for count in counts) == self.num_blocks, "blocks were lost"

    def _share(self, segment: Segment, parent: Prefix) -> TailCopy | None:
        num_full, num_rows = divmod(parent.num_tokens, self.block_size)
        for block in parent.block_table[:num_full]:
            self._ref_counts[block] += 1
            segment.block_table.append(block)
        if num_rows == 0:
            return None
        segment.block_table.append(self._take())
        return TailCopy(parent.block_table[num_full], segment.block_table[-1], num_rows, _depth(parent))

    def _take(self) -> int:
        block = self._free.popleft()
        self._ref_counts[block] = 1
        self._fresh.append(block)
        return block


def _depth(segment: Segment) -> int:
    return 0 if segment.parent is None else 1 + _depth(segment.parent)
