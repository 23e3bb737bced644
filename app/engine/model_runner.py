"""ModelRunner: turns a scheduled batch into one packed forward, and gives back the logits somebody asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import groupby

import torch

from app.engine.block_manager import TailCopy
from app.engine.scheduler import Batch, Item
from app.engine.sequence import Prefix, Segment, Sequence
from app.model.attention import Attend, AttentionBatch, no_mask
from app.model.attention_choice import choose_attend
from app.model.backbone import Backbone
from app.model.kv_cache import KVCache
from app.model.packed_weights import PackedWeights
from app.task_prompt import TaskPrompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A row of logits and why it was computed: it stands behind text token `index` of `sequence`."""

    sequence: Sequence
    index: int

    @property
    def is_last(self) -> bool:
        """Whether the next token of the sequence is chosen from it."""
        return self.index == len(self.sequence.token_ids) - 1


class ModelRunner:
    """Owns the KV cache and runs the backbone.

    Args:
        attend: the attention implementation; None chooses the fastest the device can run.
        packed_weights: what its linear layers compute with; None chooses what is fastest on this machine.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_blocks: int,
        block_size: int,
        attend: Attend | None = None,
        packed_weights: PackedWeights | None = None,
    ) -> None:
        self._backbone = backbone
        self._block_size = block_size
        device, dtype = backbone.device, backbone.dtype
        self.attend, reason = (attend, "as told") if attend else choose_attend(device, dtype, backbone.head_dim)
        logger.info("attention: %s on %s in %s (%s)", self.attend.__name__, device, dtype, reason)
        told = None if packed_weights is None else (packed_weights, f"{packed_weights.num_layers or 'none'}, as told")
        self._packed_weights, reason = told or backbone.packed_weights
        logger.info("packed weights: %s", reason)
        self.kv_cache = KVCache(
            backbone.kv_shape,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=dtype,
            device=device,
        )

    @torch.inference_mode()
    def run(self, batch: Batch) -> tuple[list[LogitRow], torch.Tensor]:
        """Compute the batch.

        Returns: the rows, and their logits (num_rows, vocab_size) float32 on the backbone's device.
        """
        if batch.fresh_blocks:
            self.kv_cache.clear(batch.fresh_blocks)
        for prefix in batch.loads:
            self._load(prefix)
        if not batch.items:
            return [], torch.empty(0, self._backbone.vocab_size)
        items = sorted(batch.items, key=lambda item: item.num_tokens > 1)
        rows, places = _logit_rows(items)
        with self._packed_weights.in_place():
            output = self._backbone.model(
                inputs_embeds=self._embed(items)[None],
                position_ids=self._tensor(_positions(items))[None],
                attention_mask=no_mask(self._backbone.device),
                use_cache=False,
                logits_to_keep=self._tensor(places),
                batch=self._attention_batch(items, batch.copies),
            )
        return rows, output.logits[0].float()

    def _embed(self, items: list[Item]) -> torch.Tensor:
        """(num_tokens, hidden_size): ids through the embedding layer, prompt rows as they are."""
        ids = [token for item in items for token in _token_ids(item)]
        embedded = self._backbone.embed(self._tensor(ids))
        start = 0
        for item in items:
            rows = _prompt_rows(item)
            if rows is not None:
                embedded[start : start + item.num_tokens] = rows.to(embedded.device, embedded.dtype)
            start += item.num_tokens
        return embedded

    def _attention_batch(self, items: list[Item], copies: list[TailCopy]) -> AttentionBatch:
        width = max(len(item.segment.block_table) for item in items)
        tables = [item.segment.block_table + [0] * (width - len(item.segment.block_table)) for item in items]
        return AttentionBatch(
            kv_cache=self.kv_cache,
            attend=self.attend,
            slots=self._tensor([slot for item in items for slot in self._slots(item.segment, *_span(item))]),
            query_lens=[item.num_tokens for item in items],
            kv_lens=[_span(item)[1] for item in items],
            block_tables=self._tensor(tables, torch.int32),
            copies=self._copy_slots(copies),
        )

    def _copy_slots(self, copies: list[TailCopy]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = []
        for _, same_depth in groupby(sorted(copies, key=lambda copy: copy.depth), key=lambda copy: copy.depth):
            source, target = [], []
            for copy in same_depth:
                source += [copy.source * self._block_size + i for i in range(copy.num_rows)]
                target += [copy.target * self._block_size + i for i in range(copy.num_rows)]
            pairs.append((self._tensor(source), self._tensor(target)))
        return pairs

    def _load(self, prefix: Prefix) -> None:
        assert isinstance(prefix.content, TaskPrompt)
        assert prefix.content.rows is not None
        slots = self._tensor(self._slots(prefix, prefix.num_parent_tokens, prefix.num_tokens))
        self.kv_cache.load_rows(slots, prefix.content.rows)

    def _slots(self, segment: Segment, start: int, end: int) -> list[int]:
        size, table = self._block_size, segment.block_table
        return [table[position // size] * size + position % size for position in range(start, end)]

    def _tensor(self, values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        host = torch.tensor(values, dtype=dtype)
        if self._backbone.device.type == "cpu":
            return host
        return host.pin_memory().to(self._backbone.device, non_blocking=True)


def _span(item: Item) -> tuple[int, int]:
    start = item.segment.num_computed_tokens
    return start, start + item.num_tokens


def _positions(items: list[Item]) -> list[int]:
    return [position for item in items for position in range(*_span(item))]


def _token_ids(item: Item) -> list[int] | tuple[int, ...]:
    """Ids of the item's tokens; where prompt rows will stand, any valid id."""
    segment = item.segment
    start, end = (position - segment.num_parent_tokens for position in _span(item))
    if isinstance(segment, Sequence):
        offset = segment.num_parent_tokens - segment.num_virtual_tokens
        return segment.token_ids[start + offset : end + offset]
    assert isinstance(segment, Prefix)
    content = segment.content
    if isinstance(content, TaskPrompt):
        content = content.token_ids or (0,) * content.num_virtual_tokens
    return content[start:end]


def _prompt_rows(item: Item) -> torch.Tensor | None:
    segment = item.segment
    if not isinstance(segment, Prefix) or not isinstance(segment.content, TaskPrompt) or segment.content.rows is None:
        return None
    return segment.content.rows[slice(*_span(item))]


def _logit_rows(items: list[Item]) -> tuple[list[LogitRow], list[int]]:
    """Which rows of logits are wanted, and where they stand in the packed batch."""
    rows, places, first = [], [], 0
    for item in items:
        if isinstance(item.segment, Sequence):
            start = _span(item)[0] - item.segment.num_virtual_tokens
            for index in _wanted(item.segment, start, start + item.num_tokens):
                rows.append(LogitRow(item.segment, index))
                places.append(first + index - start)
        first += item.num_tokens
    return rows, places


def _wanted(sequence: Sequence, start: int, end: int) -> list[int]:
    """Text tokens from `start` to before `end` behind which somebody wants the logits."""
    if sequence.score_targets is not None:
        return [index for index in range(start, end) if index in sequence.score_targets]
    wanted: list[int] = []
    if sequence.params.prompt_logprobs is not None:
        first = max(start, sequence.num_reported_logprobs)
        wanted += range(first, min(end, sequence.num_prompt_tokens - 1))
    if end == len(sequence.token_ids) and sequence.num_generated_tokens < sequence.params.max_tokens:
        wanted.append(end - 1)
    return wanted
