"""PromptReport: everything that is shown of one version's virtual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.insight.similarity import PromptDifference
from app.insight.view import PromptView


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
    compared: the version that `difference` compares it with.
    """

    model: str
    view: PromptView
    compared: str | None = None
    difference: PromptDifference | None = None
    effects: TokenEffects | None = None
