"""The slow reference for the engine: one sequence, and for every token one plain forward over all that came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from app.engine.engine import Engine
from app.engine.output.output import Delta
from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt


def text_logits(backbone: Backbone, prompt: TaskPrompt | None, token_ids: Sequence[int]) -> torch.Tensor:
    """(len(token_ids), vocab_size): the logits after every token of the text."""
    embeds = backbone.embed(torch.tensor(list(token_ids)))
    cache = None
    if prompt is not None and prompt.kind is PromptKind.KV:
        cache = _cache(backbone, prompt)
    elif prompt is not None:
        embeds = torch.cat([_rows(backbone, prompt), embeds])
    num_cached = cache.get_seq_length() if cache is not None else 0
    length = num_cached + len(embeds)
    with torch.no_grad():
        output = backbone.forward(
            cache,
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            position_ids=torch.arange(num_cached, length)[None],
        )
    logits: torch.Tensor = output.logits[0, -len(token_ids) :]
    return logits


def greedy(
    backbone: Backbone, prompt: TaskPrompt | None, token_ids: Sequence[int], max_tokens: int
) -> tuple[list[int], torch.Tensor]:
    """Tokens chosen one after another, and the log-probabilities (max_tokens, vocab_size) each was chosen from."""
    ids, rows = list(token_ids), []
    for _ in range(max_tokens):
        rows.append(text_logits(backbone, prompt, ids)[-1].log_softmax(-1))
        ids.append(int(rows[-1].argmax()))
    return ids[len(token_ids) :], torch.stack(rows)


def step(engine: Engine) -> list[tuple[int, Any]]:
    """Sequence ids and what one step gave them: deltas, or scores."""
    return [*engine.step(), *engine.take_scores()]


def run(engine: Engine, *, is_audited: bool = True) -> dict[int, list[Any]]:
    """Step until every sequence has finished. Gives each sequence id its deltas or its scores."""
    id_to_deltas: dict[int, list[Any]] = {}
    for _ in range(10_000):
        if not engine.has_unfinished:
            return id_to_deltas
        for sequence_id, delta in step(engine):
            id_to_deltas.setdefault(sequence_id, []).append(delta)
        if is_audited:
            engine.scheduler.audit()
    raise AssertionError("the engine does not come to an end")


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def _rows(backbone: Backbone, prompt: TaskPrompt) -> torch.Tensor:
    if prompt.rows is not None:
        return prompt.rows
    return backbone.embed(torch.tensor(prompt.token_ids))


def _cache(backbone: Backbone, prompt: TaskPrompt) -> DynamicCache:
    """The prompt's keys and values, unpacked as PEFT's `get_prompt` does."""
    shape = backbone.kv_shape
    assert prompt.rows is not None
    values = prompt.rows.view(1, -1, shape.num_layers * 2, shape.num_kv_heads, shape.head_dim).permute(2, 0, 3, 1, 4)
    cache = DynamicCache()
    for layer in range(shape.num_layers):
        cache.update(values[2 * layer].contiguous(), values[2 * layer + 1].contiguous(), layer)
    return cache
