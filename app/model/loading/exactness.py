"""Whether a model computes packed sequences as it computes them alone: asked of the model itself, at load and again
with the attention and the layers that were chosen to serve it.

Transformers has some two hundred causal models. Most send every layer's keys and values through the attention
interface and take positions as given; those that do something of their own would answer, and answer wrongly. Some of
it begins at a far position only (queries that grow from 16,384 on, rotations that change), so one of the trial's
sequences stands at the last positions: a sequence can, without what comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from app.errors import UnsupportedModel
from app.model.attention import Attend, AttentionBatch, attend_sdpa, no_mask
from app.model.kv_cache import KVCache, KVShape
from app.model.loading.checkpoint import count_positions

BLOCK_SIZE = 8
CUTS = ((0, 0), (4, 2), (5, 5), (6, 6))
"""How far each of two sequences is computed after each step. The first step adds several tokens to both, the second
mixes one that adds a token with one that adds more, and in the third both add one."""
NUM_TOKENS = CUTS[-1][0]
MAX_RELATIVE_ERROR = 1e-3
MAX_RELATIVE_ERROR_OF_HALVES = 0.2


@dataclass(frozen=True, eq=False)
class TrialTexts:
    """Two sequences of NUM_TOKENS tokens that are all different.

    Attributes:
        embeds: rows of each, (NUM_TOKENS, hidden_size).
        firsts: the position of the first token of each: the first of all, and the last one that leaves room.
    """

    embeds: tuple[torch.Tensor, ...]
    firsts: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> TrialTexts:
        layer = model.get_input_embeddings()
        token_ids = torch.arange(3, 3 + 2 * NUM_TOKENS, device=model.device) % layer.weight.shape[0]
        return cls(layer(token_ids).split(NUM_TOKENS), (0, max(0, count_positions(model.config) - NUM_TOKENS)))


@dataclass(frozen=True, eq=False)
class PackingTrial:
    """Attributes: shape: of what the model leaves in a cache."""

    model: PreTrainedModel
    shape: KVShape

    @property
    def limit(self) -> float:
        """Of the error of what is exact up to rounding."""
        is_wide = self.model.dtype.itemsize >= torch.float32.itemsize
        return MAX_RELATIVE_ERROR if is_wide else MAX_RELATIVE_ERROR_OF_HALVES

    @torch.no_grad()
    def error_of(self, attend: Attend, block_size: int = BLOCK_SIZE) -> float:
        """The largest error of a sequence's logits among the steps, relative to their norm; NaN if one is not finite.

        Raises whatever the model raises.
        """
        model, texts, errors = self.model, self._texts, []
        cache = KVCache(self.shape, num_blocks=3, block_size=block_size, dtype=model.dtype, device=model.device)
        for starts, ends in pairwise(CUTS):
            packed = compute_packed(model, cache, texts, starts, ends, attend)
            for row, alone, end in zip(packed, self._alone, ends, strict=True):
                wanted = alone[end - 1]
                errors.append((row - wanted).norm() / wanted.norm().clamp(min=1e-6))
        return float(torch.stack(errors).max())

    @cached_property
    def _texts(self) -> TrialTexts:
        return TrialTexts.of(self.model)

    @cached_property
    def _alone(self) -> list[torch.Tensor]:
        """(NUM_TOKENS, vocab_size) float32 of each sequence, from plain forwards; the first finds its own positions."""
        found, device = [], self.model.device
        for rows, first in zip(self._texts.embeds, self._texts.firsts, strict=True):
            mask = torch.ones((1, len(rows)), dtype=torch.int64, device=device)
            places = {"position_ids": torch.arange(first, first + len(rows), device=device)[None]} if first else {}
            output = self.model(inputs_embeds=rows[None].clone(), attention_mask=mask, use_cache=False, **places)
            found.append(output.logits[0].float())
        return found


def check_packing(trial: PackingTrial) -> None:
    """Compare two sequences packed in chunks with each alone in a plain forward.

    Raises:
        UnsupportedModel: logits differ, or the packed forward fails.
    """
    kind = trial.model.config.model_type
    try:
        error = trial.error_of(attend_sdpa)
    except Exception as cause:
        raise UnsupportedModel(f"{kind} cannot be computed in packed batches", param="model") from cause
    if not error <= trial.limit:
        raise UnsupportedModel(f"{kind} answers differently in packed batches (error {error:.1e})", param="model")


def compute_packed(
    model: PreTrainedModel,
    cache: KVCache,
    texts: TrialTexts,
    starts: Sequence[int],
    ends: Sequence[int],
    attend: Attend,
) -> torch.Tensor:
    """(num_sequences, vocab_size) float32: the logits after the last token of each.

    Args:
        cache: of blocks that hold a sequence; the i-th has block 1 + i.
        starts, ends: which tokens of each sequence are computed; those before are in the cache.
    """
    device = model.device
    spans = list(zip(starts, ends, strict=True))
    order = torch.cat([torch.arange(start, end, device=device) for start, end in spans])
    lengths = [end - start for start, end in spans]
    per_token = torch.tensor(lengths, device=device)
    blocks = torch.arange(1, 1 + len(spans), device=device)
    batch = AttentionBatch(
        kv_cache=cache,
        attend=attend,
        slots=blocks.repeat_interleave(per_token) * cache.block_size + order,
        query_lens=lengths,
        kv_lens=list(ends),
        block_tables=blocks[:, None].to(torch.int32),
    )
    rows = [rows[start:end] for rows, (start, end) in zip(texts.embeds, spans, strict=True)]
    output = model(
        inputs_embeds=torch.cat(rows)[None],
        position_ids=(order + torch.tensor(texts.firsts, device=device).repeat_interleave(per_token))[None],
        attention_mask=no_mask(device),
        use_cache=False,
        logits_to_keep=per_token.cumsum(0) - 1,
        batch=batch,
    )
    return output.logits[0].float()
