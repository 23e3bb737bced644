"""PromptReport: everything that is shown of one version's virtual tokens, and the variants that tell what they do.

PromptView: the part that can be seen without asking the model anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F

from app.errors import InvalidInput
from app.insight.keys_values import KeyValueNorms, LayerNorms, percentiles_of, split_rows
from app.insight.similarity import (
    CLUSTER_COSINE,
    DUPLICATE_COSINE,
    Groups,
    NearToken,
    PromptDifference,
    cosines,
    find_neighbors,
    group_rows,
    vocabulary_norms,
)
from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt

DEFAULT_NEAREST = 5
EMBEDDINGS_NOTE = (
    "Near tokens are a hint, not a reading: prompts that answer equally well can be made to lie near any tokens one "
    "likes, or far from all of them (Khashabi et al. 2022, Prompt Waywardness). What a virtual token does is what "
    "changes in the answers without it."
)
KV_NOTE = (
    "This prompt is keys and values of every layer: its virtual tokens do not lie among the vocabulary's embeddings "
    "and have no near tokens. Their lengths are compared with those of a real text; what a virtual token does is what "
    "changes in the answers without it."
)


@dataclass(frozen=True, slots=True)
class VirtualToken:
    """One row.

    Attributes:
        norm: L2.
        drift: L2 between the row and its initial value; None if that is not known.
        drift_cosine: of the angle between them; None likewise.
    """

    index: int
    norm: float
    drift: float | None
    drift_cosine: float | None


@dataclass(frozen=True, slots=True)
class EmbeddedToken(VirtualToken):
    """A row among the vocabulary's embeddings.

    Attributes:
        norm_percentile: percentage of the vocabulary's embeddings that are shorter.
        by_cosine, by_distance: the nearest tokens, nearest first.
    """

    norm_percentile: float
    by_cosine: tuple[NearToken, ...]
    by_distance: tuple[NearToken, ...]


@dataclass(frozen=True, slots=True)
class CachedToken(VirtualToken):
    """A row of keys and values.

    Attributes:
        key_norm, value_norm: mean over the layers of its keys' and values' norms, each in units of the median norm
            of a real text's tokens in that layer: 1 is as long as text.
    """

    key_norm: float
    value_norm: float


@dataclass(frozen=True, eq=False)
class PromptView:
    """Attributes:
    note: what the view can and cannot tell, for people.
    vocabulary_norms: percentile to L2 norm of the vocabulary's embeddings; empty for keys and values.
    layers: of keys and values; empty for embeddings.
    similarity: (num_virtual_tokens, num_virtual_tokens) cosines between the rows; each layer of keys and values counts
        in units of its text's norms.
    """

    kind: PromptKind
    note: str
    virtual_tokens: tuple[EmbeddedToken, ...] | tuple[CachedToken, ...]
    vocabulary_norms: dict[int, float]
    layers: tuple[LayerNorms, ...]
    similarity: torch.Tensor

    @cached_property
    def clusters(self) -> Groups:
        return group_rows(self.similarity, CLUSTER_COSINE)

    @cached_property
    def near_duplicates(self) -> Groups:
        return group_rows(self.similarity, DUPLICATE_COSINE)


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


def view_prompt(
    backbone: Backbone, prompt: TaskPrompt, *, num_nearest: int | None = None, initial: torch.Tensor | None = None
) -> PromptView:
    """Args:
        prompt: of kind embeddings or kv.
        num_nearest: 1 to 100, of embeddings alone; None takes DEFAULT_NEAREST.
        initial: where tuning started, of the prompt's shape.

    Raises InvalidInput.
    """
    if prompt.rows is None:
        raise InvalidInput("a hand-written prompt has no virtual tokens, only words", param="task")
    if initial is not None and initial.shape != prompt.rows.shape:
        raise InvalidInput("initial must have the prompt's shape", param="initial")
    if prompt.kind is PromptKind.KV:
        if num_nearest is not None:
            raise InvalidInput("keys and values have no near tokens; leave num_nearest out", param="num_nearest")
        return _view_keys_values(backbone, prompt.rows, initial)
    if num_nearest is not None and not 1 <= num_nearest <= 100:
        raise InvalidInput("num_nearest must be at least 1 and at most 100", param="num_nearest")
    return _view_embeddings(backbone, prompt.rows, initial, num_nearest or DEFAULT_NEAREST)


def _view_embeddings(
    backbone: Backbone, rows: torch.Tensor, initial: torch.Tensor | None, num_nearest: int
) -> PromptView:
    by_cosine, by_distance = find_neighbors(backbone, rows.to(backbone.device), num_nearest)
    of_vocabulary, norms = vocabulary_norms(backbone).cpu(), rows.norm(dim=1)
    percentiles = (of_vocabulary[None] < norms[:, None]).double().mean(dim=1) * 100
    tokens = tuple(
        EmbeddedToken(i, float(norms[i]), *drift, float(percentiles[i]), by_cosine[i], by_distance[i])
        for i, drift in enumerate(_drifts(rows, initial))
    )
    return PromptView(PromptKind.EMBEDDINGS, EMBEDDINGS_NOTE, tokens, percentiles_of(of_vocabulary), (), cosines(rows))


def _view_keys_values(backbone: Backbone, rows: torch.Tensor, initial: torch.Tensor | None) -> PromptView:
    norms = KeyValueNorms.measure(backbone, rows)
    lengths, relative = rows.norm(dim=1), norms.relative.mean(dim=1)
    tokens = tuple(
        CachedToken(i, float(lengths[i]), *drift, float(relative[i, 0]), float(relative[i, 1]))
        for i, drift in enumerate(_drifts(rows, initial))
    )
    similarity = cosines((split_rows(backbone, rows) / norms.units[..., None]).flatten(start_dim=1))
    return PromptView(PromptKind.KV, KV_NOTE, tokens, {}, norms.layers, similarity)


def _drifts(rows: torch.Tensor, initial: torch.Tensor | None) -> list[tuple[float | None, float | None]]:
    if initial is None:
        return [(None, None)] * len(rows)
    start = initial.to(rows.device, torch.float32)
    distances = (rows - start).norm(dim=1).tolist()
    return list(zip(distances, F.cosine_similarity(rows, start, dim=1).tolist(), strict=True))


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
