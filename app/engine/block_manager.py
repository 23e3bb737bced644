"""BlockManager: who holds which block of the KV cache. Knows counts and numbers, no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

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

    A block that is remembered under a key keeps what it holds after its last owner gave it back: it is free, and until
    it is handed out anew it can be found again by its key. Free blocks without a key go first, then the least recently
    used.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ValueError("a cache needs at least two blocks of at least one token")
        self.block_size = block_size
        self.num_blocks = num_blocks - 1
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._ref_counts = [0] * num_blocks
        self._fresh: list[int] = []
        self._key_to_block: dict[bytes, int] = {}
        self._block_to_key: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, segment: Segment, num_tokens: int) -> int:
        """Free blocks that `allocate` would take."""
        held = len(segment.block_table) or segment.num_parent_tokens // self.block_size
        return max(0, self.num_blocks_for(num_tokens) - held)

    def allocate(self, segment: Segment, num_tokens: int) -> TailCopy | None:
        """Give `segment` the blocks of its first `num_tokens` tokens; enough must be free.

        Returns: the copy that hands on the parent's last block, if that is partly filled and this is the first
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

    def reuse(self, segment: Segment, keys: Iterable[bytes]) -> None:
        """Give `segment`, which has no blocks and a computed parent, the remembered blocks that continue the parent.

        Args:
            keys: of the blocks after the parent's full ones, in order; the first unknown one ends it.
        """
        known = [self._key_to_block[key] for key in takewhile(self._key_to_block.__contains__, keys)]
        if not known:
            return
        inherited = segment.parent.block_table[: segment.num_parent_tokens // self.block_size] if segment.parent else []
        segment.block_table = [*inherited, *known]
        segment.num_computed_tokens = len(segment.block_table) * self.block_size
        for block in segment.block_table:
            self._hold(block)

    def remember(self, block: int, key: bytes) -> None:
        """Let the block be found by its key. One whose content another block holds already is not needed."""
        assert self._ref_counts[block] > 0, "a free block holds nothing to remember"
        if key not in self._key_to_block and block not in self._block_to_key:
            self._key_to_block[key] = block
            self._block_to_key[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Let no segment find these blocks again; their present owners keep them."""
        for block in blocks:
            key = self._block_to_key.pop(block, None)
            if key is not None:
                del self._key_to_block[key]

    def forget_all(self) -> None:
        self._key_to_block.clear()
        self._block_to_key.clear()

    def free(self, segment: Segment) -> None:
        """Take all blocks back; what was computed is forgotten, except what is remembered by key."""
        # the last block first, because a block is of use only together with those before it
        for block in reversed(segment.block_table):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, "a block was given back twice"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._block_to_key)
        segment.block_table = []
        segment.num_computed_tokens = 0

    def audit(self, segments: list[Segment]) -> None:
        """Check the counts against every segment that may hold blocks: nothing is lost, nothing is held twice."""
        counts = [0] * len(self._ref_counts)
        for segment in segments:
            for block in segment.block_table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        assert counts[NULL_BLOCK] == 0, "the null block was handed out"
        assert all(counts[block] == 0 for block in self._free), "a free block is in use"
        assert len(self._free) + sum(count > 0 for count in counts) == self.num_blocks, "blocks were lost"
        assert {block: key for key, block in self._key_to_block.items()} == self._block_to_key, "keys and blocks differ"

    def _share(self, segment: Segment, parent: Prefix) -> TailCopy | None:
        num_full, num_rows = divmod(parent.num_tokens, self.block_size)
        for block in parent.block_table[:num_full]:
            self._hold(block)
            segment.block_table.append(block)
        if num_rows == 0:
            return None
        segment.block_table.append(self._take())
        return TailCopy(parent.block_table[num_full], segment.block_table[-1], num_rows, _depth(parent))

    def _hold(self, block: int) -> None:
        self._free.pop(block, None)
        self._ref_counts[block] += 1

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self.forget([block])
        self._ref_counts[block] = 1
        self._fresh.append(block)
        return block


def _depth(segment: Segment) -> int:
    return 0 if segment.parent is None else 1 + _depth(segment.parent)
