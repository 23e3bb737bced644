"""PromptReport: everything that is shown of one version's virtual tokens, and the variants that tell what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from app.insight.similarity import PromptDifference
from app.insight.view import PromptView
from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt


@dataclass(frozen=True, slots=True)
class Effect:
    """What a variant of a prompt changes in the answers.

    Attributes:
        loss: mean negative log-probability of the target, natural logarithm; above 0, the variant does worse. Among the
            labels if the task has them, else per token.
        accuracy: of labels; None for a task that generates.
    """

    loss: float
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class MadeOfTokens:
    """The prompt with each row replaced by its nearest token of the vocabulary, and what that changes."""

    nearest_by: Literal["cosine", "distance"]
    tokens: tuple[str, ...]
    effect: Effect


@dataclass(frozen=True, slots=True)
class TokenEffects:
    """What virtual tokens do, measured on examples.

    Attributes:
        data_sha256: of the examples.
        present: the prompt's own loss and accuracy.
        without: for each virtual token, what changes when it is left out.
        made_of_tokens: empty for keys and values, which lie near no tokens.
    """

    num_examples: int
    data_sha256: str
    present: Effect
    without: tuple[Effect, ...]
    made_of_tokens: tuple[MadeOfTokens, ...]


@dataclass(frozen=True, slots=True)
class PromptReport:
    """Attributes:
    model: the version.
    difference: from another version.
    """

    model: str
    view: PromptView
    difference: PromptDifference | None = None
    effects: TokenEffects | None = None


def without_token(prompt: TaskPrompt, index: int) -> TaskPrompt | None:
    """The prompt without one virtual token, so that the text follows one position earlier; None if it was the only one.

    Args: prompt: of kind embeddings or kv.
    """
    assert prompt.rows is not None
    if len(prompt.rows) == 1:
        return None
    rows = torch.cat([prompt.rows[:index], prompt.rows[index + 1 :]])
    return TaskPrompt.from_rows(prompt.kind, rows, prompt.backbone_fingerprint)


@torch.no_grad()
def made_of_tokens(backbone: Backbone, token_ids: Sequence[int]) -> TaskPrompt:
    """The prompt whose virtual tokens are these tokens of the vocabulary."""
    rows = backbone.embed(torch.tensor(token_ids, device=backbone.device)).float()
    return TaskPrompt.from_embeddings(rows, backbone.fingerprint)
