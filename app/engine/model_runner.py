"""ModelRunner: turns a scheduled batch into one packed forward, and gives back the logits that are wanted.

It only gives the device work and never waits for it: not even the ids that go in have to be known to the host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import groupby

import torch

from app.engine.block_manager import NULL_BLOCK, TailCopy
from app.engine.config import EngineConfig
from app.engine.output.readout import LogitRow, logit_rows
from app.engine.scheduler import Batch, Item
from app.engine.sequence import Prefix, Segment, Sequence
from app.model.attention import Attend, AttentionBatch, attend_sdpa, no_mask
from app.model.backbone import Backbone
from app.model.decode_graphs import DecodeGraphs, PackedRows
from app.model.kernels import Replacements, kernels_for
from app.model.kv_cache import KVCache, to_device
from app.model.loading.exactness import BLOCK_SIZE
from app.task_prompt import TaskPrompt

logger = logging.getLogger(__name__)


class ModelRunner:
    """Owns the KV cache and runs the backbone.

    Args:
        attend: the attention implementation; None chooses the fastest the device can run.
        replacements: what computes the model's layers; None chooses what is measured to be faster.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EngineConfig,
        *,
        attend: Attend | None = None,
        replacements: Replacements | None = None,
    ) -> None:
        self._backbone = backbone
        self._block_size = config.block_size
        device, dtype = backbone.device, backbone.dtype
        self._kernels = kernels_for(device)
        self.attend, self._replacements = self._choose(attend, replacements)
        self.kv_cache = KVCache(
            backbone.kv_shape, num_blocks=config.num_blocks, block_size=config.block_size, dtype=dtype, device=device
        )
        self._decode_graphs = self._prepare_graphs(config) if config.decode_graphs else None

    @torch.inference_mode()
    def run(self, batch: Batch, chosen: torch.Tensor | None = None) -> tuple[list[LogitRow], torch.Tensor]:
        """Compute the batch.

        Args:
            chosen: (n,) int64, on the device: ids that the previous step chose, for sequences that wait for one.

        Returns: the rows, and their logits (num_rows, vocab_size) float32 on the backbone's device, there until the
            next call.
        """
        if batch.fresh_blocks:
            self.kv_cache.clear(batch.fresh_blocks)
        for prefix in batch.loads:
            assert prefix.rows is not None
            self.kv_cache.load_rows(self._prefix_slots(prefix), prefix.rows)
            prefix.rows = None  # they are in the cache now
        if not batch.items:
            return [], torch.empty(0, self._backbone.vocab_size)
        items = sorted(batch.items, key=lambda item: item.num_tokens > 1)
        put_late = partial(_put_late, *_late_ids(items), chosen)
        rows, places = logit_rows(items)
        packed = self._pack(items)
        if self._decode_graphs is not None and _is_plain_decode(items, batch.copies):
            logits = self._decode_graphs.run(packed, put_late)
            return rows, logits if len(places) == len(items) else logits.index_select(0, self._tensor(places))
        embeds = self._embed(items, packed.token_ids, put_late)
        attention_batch = AttentionBatch(
            kv_cache=self.kv_cache,
            attend=self.attend,
            slots=self._tensor(packed.slots),
            query_lens=[item.num_tokens for item in items],
            kv_lens=packed.kv_lens,
            block_tables=self._tensor(packed.block_tables, torch.int32),
            copies=self._copy_slots(batch.copies),
        )
        positions = self._tensor(packed.positions)
        return rows, self._forward(embeds, positions, attention_batch, self._tensor(places)).float()

    def computed_rows(self, prefix: Prefix) -> torch.Tensor:
        """A copy of the keys and values of a prefix; see `KVCache.load_rows` for its shape."""
        return self.kv_cache.copy_rows(self._prefix_slots(prefix))

    @property
    def computed_by(self) -> dict[str, str]:
        """What the numbers in the cache depend on besides tokens and prompts, to the last bit."""
        backbone = self._backbone
        on_cuda = backbone.device.type == "cuda"
        device = torch.cuda.get_device_name(backbone.device) if on_cuda else torch.backends.cpu.get_cpu_capability()
        return {
            "backbone": backbone.fingerprint,
            "dtype": str(backbone.dtype),
            "quantize": backbone.quantize,
            "device": device,
            "attention": self.attend.__name__,
            "layers": "compiled" if self._replacements.module_to_forward else "torch",
            "versions": f"softswap {version('softswap')}, torch {torch.__version__}, "
            f"transformers {version('transformers')}",
        }

    def _choose(self, attend: Attend | None, replacements: Replacements | None) -> tuple[Attend, Replacements]:
        """What was asked for, and the fastest of the rest, if the model answers as its own code does with them."""
        backbone, is_told = self._backbone, attend is not None and replacements is not None
        dtype, shape = backbone.dtype, backbone.kv_shape
        chosen, reason = (attend, "as told") if attend else self._kernels.choose_attend(dtype, shape.head_dim)
        logger.info("attention: %s on %s in %s (%s)", chosen.__name__, backbone.device, dtype, reason)
        layers, reason = (replacements, "as told") if replacements is not None else self._choose_layers(chosen)
        logger.info("layers: %s", reason)
        if is_told or self._is_exact(chosen, layers):
            return chosen, layers
        logger.warning("this model answers differently with what was chosen: torch's own code computes it")
        return attend or attend_sdpa, replacements or Replacements()

    def _choose_layers(self, attend: Attend) -> tuple[Replacements, str]:
        backbone = self._backbone
        try:
            return self._kernels.choose_replacements(backbone.model, backbone.kv_shape, attend)
        except Exception as error:  # of a model with layers of a kind that was never seen
            logger.warning("this model's layers could not be tried", exc_info=True)
            return Replacements(), f"torch's own ({type(error).__name__})"

    @torch.no_grad()
    def _is_exact(self, attend: Attend, replacements: Replacements) -> bool:
        backbone, trial = self._backbone, self._backbone.trial
        multiple = self._kernels.block_multiple(backbone.dtype, backbone.kv_shape.head_dim)
        try:
            with replacements.in_place():
                return trial.error_of(attend, max(BLOCK_SIZE, multiple)) <= trial.limit
        except Exception:
            logger.warning("this model could not be computed with what was chosen", exc_info=True)
            return False

    def _forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, batch: AttentionBatch, places: torch.Tensor | int = 0
    ) -> torch.Tensor:
        """(num_places, vocab_size): logits of the tokens at these places, of all without them."""
        with self._replacements.in_place():
            output = self._backbone.model(
                inputs_embeds=embeds[None],
                position_ids=positions[None],
                attention_mask=no_mask(self._backbone.device),
                use_cache=False,
                logits_to_keep=places,
                batch=batch,
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _prepare_graphs(self, config: EngineConfig) -> DecodeGraphs | None:
        if self._backbone.device.type == "cuda" and self.attend is attend_sdpa:
            logger.warning("decode graphs: none, this attention would read as many keys as a sequence may ever have")
            return None
        began_s = time.perf_counter()
        try:
            graphs = DecodeGraphs(
                lambda ids, positions, batch: self._forward(self._backbone.embed(ids), positions, batch),
                self.kv_cache,
                self.attend,
                capture=self._kernels.capture,
                vocab_size=self._backbone.model.get_output_embeddings().weight.shape[0],
                max_num_rows=config.max_num_seqs,
                max_num_tokens=config.max_model_len,
            )
        except RuntimeError as error:
            logger.warning("decode graphs: none, the model cannot be captured (%s)", str(error).partition("\n")[0])
            return None
        took_s = time.perf_counter() - began_s
        logger.info(
            "decode graphs: %d, up to %d sequences, in %.1f s", len(graphs.buckets), config.max_num_seqs, took_s
        )
        return graphs

    def _pack(self, items: list[Item]) -> PackedRows:
        width = max(len(item.segment.block_table) for item in items)
        return PackedRows(
            token_ids=[token for item in items for token in _token_ids(item)],
            positions=[position for item in items for position in range(item.start, item.end)],
            slots=[slot for item in items for slot in self._slots(item.segment, item.start, item.end)],
            kv_lens=[item.end for item in items],
            block_tables=[
                item.segment.block_table + [NULL_BLOCK] * (width - len(item.segment.block_table)) for item in items
            ],
        )

    def _embed(self, items: list[Item], token_ids: list[int], put_late: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """(num_tokens, hidden_size): ids through the embedding layer, prompt rows as they are."""
        ids = self._tensor(token_ids)
        put_late(ids)
        embedded = self._backbone.embed(ids)
        start = 0
        for item in items:
            rows = _prompt_rows(item)
            if rows is not None:
                embedded[start : start + item.num_tokens] = to_device(rows, embedded.device)
            start += item.num_tokens
        return embedded

    def _copy_slots(self, copies: list[TailCopy]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = []
        for _, same_depth in groupby(sorted(copies, key=lambda copy: copy.depth), key=lambda copy: copy.depth):
            source, target = [], []
            for copy in same_depth:
                source += [copy.source * self._block_size + i for i in range(copy.num_rows)]
                target += [copy.target * self._block_size + i for i in range(copy.num_rows)]
            pairs.append((self._tensor(source), self._tensor(target)))
        return pairs

    def _prefix_slots(self, prefix: Prefix) -> list[int]:
        return self._slots(prefix, prefix.num_parent_tokens, prefix.num_tokens)

    def _slots(self, segment: Segment, start: int, end: int) -> list[int]:
        size, table = self._block_size, segment.block_table
        return [table[position // size] * size + position % size for position in range(start, end)]

    def _tensor(self, values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return to_device(values, self._backbone.device, dtype)


def _late_ids(items: list[Item]) -> tuple[list[int], list[int]]:
    """Packed places of ids that the previous step chose and the host does not know, and which of those it chose."""
    places, rows, first = [], [], 0
    for item in items:
        segment = item.segment
        first += item.num_tokens
        if isinstance(segment, Sequence) and segment.num_pending and item.end == segment.num_tokens:
            assert segment.pending_row is not None
            places.append(first - 1)
            rows.append(segment.pending_row)
    return places, rows


def _put_late(places: list[int], rows: list[int], chosen: torch.Tensor | None, ids: torch.Tensor) -> None:
    """Write ids among (num_tokens,) int64 on the device; the host need not know them."""
    if places:
        assert chosen is not None
        late = chosen.index_select(0, to_device(rows, ids.device))
        ids.index_copy_(0, to_device(places, ids.device), late)


def _is_plain_decode(items: list[Item], copies: list[TailCopy]) -> bool:
    """Whether every item is one token of a sequence's text, and nothing but their own rows is written."""
    return not copies and all(item.num_tokens == 1 and isinstance(item.segment, Sequence) for item in items)


def _token_ids(item: Item) -> list[int] | tuple[int, ...]:
    """Ids of the item's tokens; any valid id for prompt rows, which replace it, and for an id that is not known yet."""
    segment = item.segment
    start, end = (position - segment.num_parent_tokens for position in (item.start, item.end))
    if isinstance(segment, Sequence):
        offset = segment.num_parent_tokens - segment.num_virtual_tokens
        known = segment.text_ids[start + offset : end + offset]
        return known + [0] * (end - start - len(known))
    assert isinstance(segment, Prefix)
    content = segment.content
    if isinstance(content, TaskPrompt):
        content = content.token_ids or (0,) * content.num_virtual_tokens
    return content[start:end]


def _prompt_rows(item: Item) -> torch.Tensor | None:
    segment = item.segment
    if not isinstance(segment, Prefix) or not isinstance(segment.content, TaskPrompt) or segment.content.rows is None:
        return None
    return segment.content.rows[item.start : item.end]
