"""What a run with a budget tries: prompts that differ in kind, start and learning rate, the most promising first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.task_prompt import PromptKind
from app.tuning.config import Init

KV, EMBEDDINGS = PromptKind.KV, PromptKind.EMBEDDINGS


def default_candidates(init_text: str, num_text_tokens: int, *, has_labels: bool) -> tuple[Mapping[str, Any], ...]:
    """Values by hyperparameter, of each member.

    The keys and values of a written prompt come first: on a model that understands it they start where the prompt is,
    and every layer learns (Li and Liang 2021; Eyuboglu et al. 2025). On a small model sampled embeddings do better, and
    many of them fit into a budget.

    Args: init_text: the written prompt; empty if there is none. num_text_tokens: its length.
    """
    start = {"init": Init.TEXT, "init_text": init_text, "num_virtual_tokens": num_text_tokens}
    other = {"init": Init.LABELS if has_labels else Init.VOCAB}
    written = [{"kind": KV, **start, "learning_rate": rate} for rate in (0.005, 0.015)] if init_text else []
    kv = [{"kind": KV, "init": Init.VOCAB, "learning_rate": rate} for rate in (0.01, 0.03)]
    sampled = [
        {"kind": EMBEDDINGS, **init, "learning_rate": rate, "num_virtual_tokens": length}
        for length in (20, 50)
        for rate in (0.1, 0.3, 0.03)
        for init in ({"init": Init.VOCAB}, other)
    ]
    ordered = [*written, *sampled[:2], *kv, *sampled[2:]]
    return tuple(each for i, each in enumerate(ordered) if each not in ordered[:i])
