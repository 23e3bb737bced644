"""The differentiable forward: many rows, each after its own prompt, each prompt computed once.

A prompt stands before all text and cannot see it, so its keys and values are the same for every row: one forward over
the prompts' own rows gives them, and the texts continue from copies. Gradients flow back through the copies. This is
exactly [prompt][BOS][text][target] in one sequence (a test holds the two equal), but the virtual tokens cost a batch of
B rows B times less.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from app.errors import BackboneMismatch
from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt

MIN_COLUMNS_PER_ASKED = 2
"""With fewer, what the last layer computes twice is as much as what it is spared."""

KeysValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, eq=False)
class PromptPrefix:
    """Keys and values of one or more prompts, for all layers.

    Shorter prompts are padded on the left, so that every text follows its prompt directly: an attention window counts
    columns, and so a column and its position must agree.

    Attributes:
        keys_values: per layer (keys, values), each (num_prompts, num_kv_heads, num_columns, head_dim); empty when there
            is no prompt.
        lengths: virtual tokens of each prompt; empty when there is none.
    """

    keys_values: KeysValues = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def stack(cls, prefixes: Sequence[PromptPrefix]) -> PromptPrefix:
        """The prompts of all of them, in order."""
        num_columns = max(prefix.num_columns for prefix in prefixes)
        layers = zip(*(prefix._padded(num_columns) for prefix in prefixes), strict=True)
        stacked = tuple(
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer])) for layer in layers
        )
        return cls(stacked, tuple(length for prefix in prefixes for length in prefix.lengths))

    @property
    def num_columns(self) -> int:
        """Virtual tokens of the longest prompt; 0 when there is none."""
        return max(self.lengths, default=0)

    def detached(self) -> PromptPrefix:
        """The same numbers, with gradients that stop here and are kept in `grad`."""
        leaves = tuple(
            (keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in self.keys_values
        )
        return PromptPrefix(leaves, self.lengths)

    def tensors(self) -> list[torch.Tensor]:
        """All keys and values, layer by layer."""
        return [tensor for pair in self.keys_values for tensor in pair]

    @classmethod
    def of_embeddings(cls, backbone: Backbone, rows: torch.Tensor) -> PromptPrefix:
        """Args: rows: (num_prompts, num_virtual_tokens, hidden_size), any floating dtype; differentiable."""
        cache = DynamicCache()
        nowhere = torch.empty((rows.shape[0], 0), dtype=torch.int64, device=backbone.device)
        logits_at(backbone, nowhere, cache, inputs_embeds=rows.to(backbone.device, backbone.dtype))
        keys_values = tuple((layer.keys, layer.values) for layer in cache.layers)
        return cls(keys_values, (rows.shape[1],) * rows.shape[0])

    @classmethod
    def of_prompt(cls, backbone: Backbone, prompt: TaskPrompt | None) -> PromptPrefix:
        """The prefix of a published prompt, or of none. Raises BackboneMismatch."""
        if prompt is None:
            return cls()
        if prompt.backbone_fingerprint != backbone.fingerprint:
            raise BackboneMismatch("this prompt was made for another backbone", param="prompt")
        if prompt.kind is PromptKind.TEXT:
            token_ids = torch.tensor([prompt.token_ids], device=backbone.device)
            return cls.of_embeddings(backbone, backbone.embed(token_ids))
        assert prompt.rows is not None
        return cls.of_rows(backbone, prompt.kind, prompt.rows[None])

    @classmethod
    def of_rows(cls, backbone: Backbone, kind: PromptKind, rows: torch.Tensor) -> PromptPrefix:
        """Args:
        kind: EMBEDDINGS or KV.
        rows: (num_prompts, num_virtual_tokens, width of the kind), those of KV ordered K0, V0, K1, V1, ...; any
            floating dtype; differentiable.
        """
        if kind is PromptKind.EMBEDDINGS:
            return cls.of_embeddings(backbone, rows)
        kv = backbone.kv_shape
        shape = (*rows.shape[:2], kv.num_layers, 2, kv.num_kv_heads, kv.head_dim)
        split = rows.to(backbone.device, backbone.dtype).view(shape).permute(2, 3, 0, 4, 1, 5)
        return cls(tuple((layer[0], layer[1]) for layer in split), (rows.shape[1],) * rows.shape[0])

    def kv_rows(self) -> torch.Tensor:
        """What `of_rows` takes for KV: (num_prompts, num_virtual_tokens, kv_row_size); of prompts of equal length."""
        layers = torch.stack([torch.stack(pair) for pair in self.keys_values])
        return layers.permute(2, 4, 0, 1, 3, 5).flatten(start_dim=2)

    def cache_for(self, prompt_index: torch.Tensor) -> DynamicCache:
        """A cache that holds, for each row, the keys and values of its prompt.

        Args: prompt_index: (num_rows,) int64.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.keys_values):
            if keys.shape[0] == 1:
                shape = (prompt_index.shape[0], -1, -1, -1)
                cache.update(keys.expand(shape), values.expand(shape), layer)
            else:
                cache.update(keys[prompt_index], values[prompt_index], layer)
        return cache

    def lengths_for(self, prompt_index: torch.Tensor) -> torch.Tensor:
        """(num_rows, 1) int64: the virtual tokens before each row, which is the position its text begins at."""
        if not self.lengths:
            return torch.zeros_like(prompt_index)[:, None]
        return torch.tensor(self.lengths, device=prompt_index.device)[prompt_index][:, None]

    def is_real_for(self, prompt_index: torch.Tensor) -> torch.Tensor:
        """(num_rows, num_columns) bool: False on the padding on the left of shorter prompts."""
        columns = torch.arange(self.num_columns, device=prompt_index.device)
        return columns >= self.num_columns - self.lengths_for(prompt_index)

    def _padded(self, num_columns: int) -> KeysValues:
        num_missing = num_columns - self.num_columns
        if num_missing == 0:
            return self.keys_values
        pad = (0, 0, num_missing, 0)
        return tuple((F.pad(keys, pad), F.pad(values, pad)) for keys, values in self.keys_values)


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Rows of token ids, padded on the right.

    Attributes:
        token_ids: (num_rows, max_len) int64.
        text_lens: (num_rows,) int64: ids before the target.
        row_lens: (num_rows,) int64: ids before the padding.
        prompt_index: (num_rows,) int64: which of a prefix's prompts the row continues.
    """

    token_ids: torch.Tensor
    text_lens: torch.Tensor
    row_lens: torch.Tensor
    prompt_index: torch.Tensor

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    @property
    def is_real(self) -> torch.Tensor:
        """(num_rows, max_len) bool: False on padding."""
        return torch.arange(self.token_ids.shape[1], device=self.token_ids.device) < self.row_lens[:, None]

    @property
    def is_target(self) -> torch.Tensor:
        """(num_rows, max_len) bool: True on the ids of the target."""
        columns = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        return self.is_real & (columns >= self.text_lens[:, None])


def target_log_likelihoods(backbone: Backbone, prefix: PromptPrefix, batch: PaddedBatch) -> torch.Tensor:
    """log P(token | prompt, text, earlier tokens) of every target token, natural log.

    Returns:
        (num_rows, max_len) float32, 0 on every column that is not part of the target.
    """
    mask = batch.is_target
    is_asked = mask.roll(-1, dims=1)
    logits = text_logits(backbone, prefix, batch, is_asked)
    picked = -F.cross_entropy(logits, batch.token_ids[mask], reduction="none")
    return torch.zeros(mask.shape, device=picked.device).masked_scatter(mask, picked)


def text_logits(backbone: Backbone, prefix: PromptPrefix, batch: PaddedBatch, is_asked: torch.Tensor) -> torch.Tensor:
    """Logits at the columns that are asked for, row by row, (num_asked, vocab_size) float32.

    Args:
        is_asked: (num_rows, max_len) bool.
    """
    asked_first = is_asked.int().argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(batch.token_ids.shape[1], device=backbone.device)
    return logits_at(
        backbone,
        asked_first[:, : int(is_asked.sum(dim=1).max())],
        prefix.cache_for(batch.prompt_index),
        inputs_embeds=backbone.embed(batch.token_ids),
        attention_mask=torch.cat([prefix.is_real_for(batch.prompt_index), batch.is_real], dim=1),
        position_ids=prefix.lengths_for(batch.prompt_index) + columns,
        logits_to_keep=is_asked,
    )


def logits_at(backbone: Backbone, columns: torch.Tensor, cache: DynamicCache, **inputs: Any) -> torch.Tensor:
    """A plain forward, differentiable, whose last layer computes no more than is asked for.

    Args:
        columns: (num_rows, num_asked) int64, all that `logits_to_keep` names.
        cache: of the rows' prompts; what the forward computes is added to it.
        inputs: the model's others.

    Returns: the logits that `logits_to_keep` names, float32; of all `columns` if it is not given.
    """
    is_worth_it = columns.shape[1] * MIN_COLUMNS_PER_ASKED <= inputs["inputs_embeds"].shape[1]
    last_layer = backbone.last_layer if is_worth_it else None
    with nullcontext() if last_layer is None else last_layer.only_at(columns):
        output = backbone.forward(cache, **{"logits_to_keep": columns, **inputs})
    logits: torch.Tensor = output.logits
    return logits.float()
