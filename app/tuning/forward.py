"""The differentiable forward: many rows, each with its own prompt in front, each prompt computed once.

A prompt stands before all text and cannot see it, so its keys and values are the same for every row: one forward over
the prompts' own rows gives them, and the texts continue from copies. Gradients flow back through the copies. This is
exactly [prompt][BOS][text][target] in one sequence (a test holds the two equal), but the virtual tokens cost a batch of
B rows B times less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from app.errors import BackboneMismatch
from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.encoding import Batch

KeysValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of one or more prompts of equal length, for all layers.

    Attributes:
        keys_values: per layer (keys, values), each (num_prompts, num_kv_heads, num_virtual_tokens, head_dim); empty
            when there is no prompt.
        num_virtual_tokens: 0 when there is no prompt.
    """

    keys_values: KeysValues
    num_virtual_tokens: int

    @classmethod
    def empty(cls) -> Prefix:
        return cls((), 0)

    @classmethod
    def of_embeddings(cls, backbone: Backbone, rows: torch.Tensor) -> Prefix:
        """Args: rows: (num_prompts, num_virtual_tokens, hidden_size), any floating dtype; differentiable."""
        cache = DynamicCache()
        backbone.model(
            inputs_embeds=rows.to(backbone.device, backbone.dtype),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(_read(cache), rows.shape[1])

    @classmethod
    def of_prompt(cls, backbone: Backbone, prompt: TaskPrompt | None) -> Prefix:
        """The prefix of a published prompt, or of none. Raises BackboneMismatch."""
        if prompt is None:
            return cls.empty()
        if prompt.backbone_fingerprint != backbone.fingerprint:
            raise BackboneMismatch("this prompt was made for another backbone", param="prompt")
        if prompt.kind is PromptKind.TEXT:
            token_ids = torch.tensor([prompt.token_ids], device=backbone.device)
            return cls.of_embeddings(backbone, backbone.embed(token_ids))
        assert prompt.rows is not None
        return cls.of_rows(backbone, prompt.kind, prompt.rows[None])

    @classmethod
    def of_rows(cls, backbone: Backbone, kind: PromptKind, rows: torch.Tensor) -> Prefix:
        """Args:
        kind: EMBEDDINGS or KV.
        rows: (num_prompts, num_virtual_tokens, width of the kind), any floating dtype; differentiable.
        """
        return cls.of_embeddings(backbone, rows) if kind is PromptKind.EMBEDDINGS else cls.of_kv(backbone, rows)

    @classmethod
    def of_kv(cls, backbone: Backbone, rows: torch.Tensor) -> Prefix:
        """Args: rows: (num_prompts, num_virtual_tokens, kv_row_size), ordered K0, V0, K1, V1, ...; differentiable."""
        shape = (*rows.shape[:2], backbone.num_layers, 2, backbone.num_kv_heads, backbone.head_dim)
        split = rows.to(backbone.device, backbone.dtype).view(shape).permute(2, 3, 0, 4, 1, 5)
        return cls(tuple((layer[0], layer[1]) for layer in split), rows.shape[1])

    def kv_rows(self) -> torch.Tensor:
        """What `of_kv` takes: (num_prompts, num_virtual_tokens, kv_row_size)."""
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


def target_log_likelihoods(backbone: Backbone, prefix: Prefix, batch: Batch) -> torch.Tensor:
    """log P(token | prompt, text, earlier tokens) of every target token, natural log.

    Returns:
        (num_rows, max_len) float32, 0 on every column that is not part of the target.
    """
    mask = batch.is_target
    is_asked = mask.roll(-1, dims=1)
    logits = text_logits(backbone, prefix, batch, is_asked)
    picked = -F.cross_entropy(logits, batch.token_ids[mask], reduction="none")
    return torch.zeros(mask.shape, device=picked.device).masked_scatter(mask, picked)


def text_logits(backbone: Backbone, prefix: Prefix, batch: Batch, is_asked: torch.Tensor) -> torch.Tensor:
    """Logits at the columns that are asked for, row by row, (num_asked, vocab_size) float32.

    Args:
        is_asked: (num_rows, max_len) bool.
    """
    num_rows, max_len = batch.token_ids.shape
    before = torch.ones(num_rows, prefix.num_virtual_tokens, dtype=torch.bool, device=backbone.device)
    positions = prefix.num_virtual_tokens + torch.arange(max_len, device=backbone.device)
    output = backbone.model(
        inputs_embeds=backbone.embed(batch.token_ids),
        attention_mask=torch.cat([before, batch.is_real], dim=1),
        position_ids=positions.expand(num_rows, -1),
        past_key_values=prefix.cache_for(batch.prompt_index),
        use_cache=True,
        logits_to_keep=is_asked,
    )
    logits: torch.Tensor = output.logits
    return logits.float()


def _read(cache: DynamicCache) -> KeysValues:
    return tuple((layer.keys, layer.values) for layer in cache.layers)
