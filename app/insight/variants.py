"""Variants of a prompt, to compare answers with: one virtual token left out, or all made real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt


def without_token(prompt: TaskPrompt, index: int) -> TaskPrompt | None:
    """The prompt without one virtual token, so that the text follows one position earlier; None if it was the only one.

    Args: prompt: of kind embeddings or kv.
    """
    assert prompt.rows is not None
    if len(prompt.rows) == 1:
        return None
    rows = torch.cat([prompt.rows[:index], prompt.rows[index + 1 :]])
    make = TaskPrompt.from_kv if prompt.kind is PromptKind.KV else TaskPrompt.from_embeddings
    return make(rows, prompt.backbone_fingerprint)


@torch.no_grad()
def made_of_tokens(backbone: Backbone, token_ids: Sequence[int]) -> TaskPrompt:
    """The prompt whose virtual tokens are these tokens of the vocabulary."""
    rows = backbone.embed(torch.tensor(token_ids, device=backbone.device)).float()
    return TaskPrompt.from_embeddings(rows, backbone.fingerprint)
