"""Scheduler: which tokens are computed in the next step.

Every step has a budget of tokens. Sequences that add one token come first, so that a long text never makes others
wait for their next word; then texts that are not computed yet, in chunks; then waiting sequences are admitted. When
blocks run out, unused prefixes are dropped, then the youngest sequence is preempted: it gives its blocks back and is
computed again later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.block_manager import BlockManager, TailCopy
from app.engine.fair_queue import FairQueue
from app.engine.prefix.prefix_cache import PrefixCache
from app.engine.sequence import Prefix, Segment, Sequence
from app.engine.speculation import Speculation

if TYPE_CHECKING:
    from app.engine.prefix.prefix_store import PrefixStore

MAX_PROMPT_LOGITS = 256


@dataclass(frozen=True, slots=True)
class Item:
    """`num_tokens` tokens of a segment, from its first uncomputed one on, which is at position `start`."""

    segment: Segment
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(eq=False)
class Batch:
    """What one step computes.

    Attributes:
        items: tokens to put through the model.
        loads: prefixes whose keys and values are ready-made and only have to be put in place.
        copies: tails of prefixes to hand on.
        fresh_blocks: blocks that are new to their owners; they must be zeroed first.
        planned: tokens planned of each segment.
        num_tokens: tokens of all items.
        num_prompt_logits: text tokens whose logits are wanted for more than choosing the next token.
        num_prefix_queries, num_prefix_hits: tokens of admitted sequences, virtual ones included, and those found
            computed.
        num_rejected: tokens of a sequence's item that were proposed in vain (`Speculation`).
    """

    items: list[Item] = field(default_factory=list)
    loads: list[Prefix] = field(default_factory=list)
    copies: list[TailCopy] = field(default_factory=list)
    fresh_blocks: list[int] = field(default_factory=list)
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    planned: dict[Segment, int] = field(default_factory=dict)
    num_tokens: int = 0
    num_prompt_logits: int = 0
    num_rejected: dict[Segment, int] = field(default_factory=dict)

    @property
    def num_text_tokens(self) -> int:
        """Tokens of requests' texts among the items."""
        return sum(_num_text_tokens(item) for item in self.items)

    def add(self, segment: Segment, num_tokens: int) -> None:
        self.planned[segment] = num_tokens
        if isinstance(segment, Prefix) and segment.is_loadable:
            self.loads.append(segment)
            return
        self.items.append(Item(segment, segment.num_computed_tokens, num_tokens))
        self.num_tokens += num_tokens
        if isinstance(segment, Sequence):
            self.num_prompt_logits += min(num_tokens, segment.num_wanted_logits)

    def is_computed_by_then(self, segment: Segment) -> bool:
        """Whether all tokens of the segment are in the cache once this batch has run."""
        return segment.num_computed_tokens + self.planned.get(segment, 0) == segment.num_tokens


class Scheduler:
    """Owns the waiting and the running sequences.

    Args:
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens computed in a step; at least `max_num_seqs`, so that all can run.
        is_text_kept: whether text is found again after its sequence ended.
        store: asked for prompts before they are computed.
        speculation: proposes tokens to running sequences; None proposes none.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        is_text_kept: bool = True,
        store: PrefixStore | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        self.block_manager = block_manager
        self.prefix_cache = PrefixCache(block_manager, is_text_kept=is_text_kept, store=store)
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._speculation = speculation

    @property
    def has_unfinished(self) -> bool:
        return bool(self.running) or len(self.waiting) > 0

    def add(self, sequence: Sequence) -> None:
        self.waiting.push(sequence)
        self.prefix_cache.expect(sequence)

    def schedule(self) -> Batch:
        """Plan the next step. Blocks of everything planned are allocated when this returns."""
        batch = Batch()
        if self._speculation is not None:
            self._speculation.propose(self.running, self.block_manager.num_free_blocks)
        is_short_of_blocks = False
        # those that need one token for their next, then the others; the oldest first in both
        for sequence in sorted(self.running, key=lambda sequence: not sequence.is_decoding):
            if sequence in self.running and not self._plan_sequence(sequence, batch):
                is_short_of_blocks = True
        if not is_short_of_blocks:
            self._admit(batch)
        batch.fresh_blocks = self.block_manager.take_fresh()
        return batch

    def schedule_alone(self, prefix: Prefix) -> Batch:
        """Plan the next tokens of a prefix that no sequence asked for. Enough blocks must be free."""
        batch = Batch()
        end = prefix.num_computed_tokens + self._num_tokens_to_plan(prefix, batch)
        self.block_manager.allocate(prefix, end)
        batch.add(prefix, end - prefix.num_computed_tokens)
        batch.fresh_blocks = self.block_manager.take_fresh()
        return batch

    def advance(self, batch: Batch) -> None:
        """Count as computed what was given to the device: the next batch comes after it."""
        for prefix in batch.loads:
            prefix.num_computed_tokens = prefix.num_tokens
        for item in batch.items:
            item.segment.num_computed_tokens = item.end
            if isinstance(item.segment, Sequence):
                self.waiting.charge(item.segment.flow, item.num_tokens)

    def keep(self, batch: Batch) -> None:
        """Let others find what the batch computed, now that all ids that went into it are known."""
        for item in batch.items:
            self.prefix_cache.keep_text(item.segment, item.start, item.end - batch.num_rejected.get(item.segment, 0))

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._give_back(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take the blocks of a running sequence back; it waits to be computed again."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.spec_token_ids = []
        self.waiting.push_front(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def audit(self) -> None:
        """Check the block manager's counts against every segment alive."""
        self.block_manager.audit([*self.running, *self.waiting, *self.prefix_cache.prefixes])

    def _plan_sequence(self, sequence: Sequence, batch: Batch) -> bool:
        """Plan as much of the sequence and its prefixes as the budget allows; False when blocks are short."""
        for segment in _chain(sequence):
            if batch.is_computed_by_then(segment) and segment is not sequence:
                continue
            if segment not in batch.planned and not self._plan_segment(segment, sequence, batch):
                return False
            if not batch.is_computed_by_then(segment):
                return True
        return True

    def _plan_segment(self, segment: Segment, owner: Sequence, batch: Batch) -> bool:
        num_tokens = self._num_tokens_to_plan(segment, batch)
        if num_tokens == 0:
            return True
        end = segment.num_computed_tokens + num_tokens
        if not self._make_room(self.block_manager.num_missing_blocks(segment, end), owner, batch):
            return False
        copy = self.block_manager.allocate(segment, end)
        if copy is not None:
            batch.copies.append(copy)
        batch.add(segment, num_tokens)
        return True

    def _num_tokens_to_plan(self, segment: Segment, batch: Batch) -> int:
        if isinstance(segment, Prefix) and segment.is_loadable:
            return segment.num_uncomputed_tokens
        if isinstance(segment, Sequence) and segment.is_held:
            return 0
        num_tokens = min(segment.num_uncomputed_tokens, self._max_num_batched_tokens - batch.num_tokens)
        if isinstance(segment, Sequence) and segment.num_wanted_logits:
            # a row of logits is as wide as the vocabulary: many at a time would not fit into memory
            return min(num_tokens, MAX_PROMPT_LOGITS - batch.num_prompt_logits)
        return num_tokens

    def _make_room(self, num_blocks: int, owner: Sequence, batch: Batch) -> bool:
        """Drop unused prefixes, then preempt sequences younger than `owner`, until that many blocks are free."""
        while not self.prefix_cache.make_room(num_blocks):
            victim = self._victim(owner, batch)
            if victim is None:
                return False
            self.preempt(victim)
        return True

    def _victim(self, owner: Sequence, batch: Batch) -> Sequence | None:
        """The youngest running sequence that is younger than `owner` and not part of the batch yet."""
        for sequence in reversed(self.running):
            if sequence is owner:
                return None
            if not any(segment in batch.planned for segment in _chain(sequence)):
                return sequence
        return None

    def _give_back(self, sequence: Sequence) -> None:
        self.block_manager.free(sequence)
        self.prefix_cache.release(sequence)

    def _admit(self, batch: Batch) -> None:
        while (
            len(self.waiting)
            and len(self.running) < self._max_num_seqs
            and batch.num_tokens < self._max_num_batched_tokens
        ):
            sequence = self.waiting.peek()
            self.prefix_cache.acquire(sequence)
            if not self._has_room_for(sequence):
                self._give_back(sequence)
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if sequence.num_preemptions == 0:
                batch.num_prefix_queries += sequence.num_tokens
                batch.num_prefix_hits += sequence.num_cached_tokens
            if not self._plan_sequence(sequence, batch):
                return

    def _has_room_for(self, sequence: Sequence) -> bool:
        """Whether the whole text and what is missing of its prefixes fit now, so that it is not preempted at once."""
        blocks = self.block_manager
        missing = (blocks.num_missing_blocks(segment, segment.num_tokens) for segment in _chain(sequence))
        return self.prefix_cache.make_room(sum(missing))


def _num_text_tokens(item: Item) -> int:
    segment = item.segment
    if isinstance(segment, Sequence):
        start = item.start - segment.num_virtual_tokens
        return max(0, min(item.num_tokens, segment.num_prompt_tokens - start))
    is_text = isinstance(segment, Prefix) and isinstance(segment.content, tuple)
    return item.num_tokens if is_text else 0


def _chain(segment: Segment) -> Iterator[Segment]:
    """The segment's prefixes from the outermost on, then the segment."""
    if segment.parent is not None:
        yield from _chain(segment.parent)
    yield segment
