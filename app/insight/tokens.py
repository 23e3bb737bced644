"""What the rows of a soft prompt lie near: the closest vocabulary tokens, their size, how far tuning moved them.

Near tokens are a hint, not a reading: a prompt may lie far from all tokens and mean none of them (Khashabi et al. 2022,
"Prompt Waywardness").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.task_prompt import PromptKind, TaskPrompt

CHUNK_SIZE = 8192
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True)
class NearToken:
    """Attributes: token: its text. cosine: of the angle between embedding and row. distance: L2 between them."""

    token_id: int
    token: str
    cosine: float
    distance: float


@dataclass(frozen=True, slots=True)
class VirtualToken:
    """One row.

    Attributes:
        norm: L2.
        norm_percentile: share of the vocabulary's embeddings that are shorter, 0 to 100.
        by_cosine, by_distance: the nearest tokens, nearest first.
        drift: L2 between the row and its initial value; None when that is not known.
        drift_cosine: of the angle between them; None likewise.
    """

    index: int
    norm: float
    norm_percentile: float
    by_cosine: tuple[NearToken, ...]
    by_distance: tuple[NearToken, ...]
    drift: float | None
    drift_cosine: float | None


@dataclass(frozen=True, slots=True)
class PromptView:
    """Attributes: vocabulary_norms: percentile (PERCENTILES) to L2 norm of the vocabulary's embeddings."""

    virtual_tokens: tuple[VirtualToken, ...]
    vocabulary_norms: dict[int, float]


@torch.no_grad()
def view_prompt(
    backbone: Backbone, prompt: TaskPrompt, *, num_nearest: int = 5, initial: torch.Tensor | None = None
) -> PromptView:
    """Args:
        prompt: of kind embeddings.
        num_nearest: 1 to 100.
        initial: (num_virtual_tokens, hidden_size), where tuning started.

    Raises InvalidInput.
    """
    if prompt.kind is not PromptKind.EMBEDDINGS or prompt.rows is None:
        raise InvalidInput("only prompts of kind embeddings lie among the vocabulary's embeddings", param="task")
    if not 1 <= num_nearest <= 100:
        raise InvalidInput("num_nearest must be at least 1 and at most 100", param="num_nearest")
    if initial is not None and initial.shape != prompt.rows.shape:
        raise InvalidInput("initial must have the prompt's shape", param="initial")
    rows = prompt.rows.to(backbone.device)
    vocabulary_norms = torch.cat([chunk.norm(dim=1) for _, chunk in _chunks(backbone)])
    by_cosine, by_distance = _nearest(backbone, rows, min(num_nearest, backbone.vocab_size))
    norms = rows.norm(dim=1)
    percentiles = (vocabulary_norms[None] < norms[:, None]).double().mean(dim=1) * 100
    drifts = _drifts(rows, initial)
    tokens = tuple(
        VirtualToken(i, float(norms[i]), float(percentiles[i]), by_cosine[i], by_distance[i], *drifts[i])
        for i in range(len(rows))
    )
    quantiles = torch.tensor([p / 100 for p in PERCENTILES], dtype=torch.float64)
    at = quantiles * (len(vocabulary_norms) - 1)
    ordered = vocabulary_norms.sort().values.cpu()
    return PromptView(tokens, {p: float(ordered[round(float(i))]) for p, i in zip(PERCENTILES, at, strict=True)})


def _chunks(backbone: Backbone) -> Iterator[tuple[int, torch.Tensor]]:
    """(first id, embeddings (chunk, hidden_size) float32) over the vocabulary: large ones are never copied whole."""
    for start in range(0, backbone.vocab_size, CHUNK_SIZE):
        token_ids = torch.arange(start, min(start + CHUNK_SIZE, backbone.vocab_size), device=backbone.device)
        yield start, backbone.embed(token_ids).float()


def _nearest(
    backbone: Backbone, rows: torch.Tensor, num_nearest: int
) -> tuple[list[tuple[NearToken, ...]], list[tuple[NearToken, ...]]]:
    """For each row the nearest tokens by cosine and by distance."""
    best_cosine, best_distance = _Best(num_nearest), _Best(num_nearest)
    for start, chunk in _chunks(backbone):
        cosine = F.normalize(rows, dim=1) @ F.normalize(chunk, dim=1).T
        distance = torch.cdist(rows, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        best_cosine.add(start, cosine, cosine, distance)
        best_distance.add(start, -distance, cosine, distance)
    return best_cosine.tokens(backbone), best_distance.tokens(backbone)


class _Best:
    """The highest ranks seen so far, per row, with the cosine and distance of each."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._columns: tuple[torch.Tensor, ...] = ()

    def add(self, start: int, rank: torch.Tensor, cosine: torch.Tensor, distance: torch.Tensor) -> None:
        token_ids = (start + torch.arange(rank.shape[1], device=rank.device)).expand_as(rank)
        new = (rank, token_ids, cosine, distance)
        columns = (
            tuple(torch.cat(pair, dim=1) for pair in zip(self._columns, new, strict=True)) if self._columns else new
        )
        order = columns[0].topk(min(self._num, columns[0].shape[1]), dim=1).indices
        self._columns = tuple(column.gather(1, order) for column in columns)

    def tokens(self, backbone: Backbone) -> list[tuple[NearToken, ...]]:
        _, token_ids, cosine, distance = (column.tolist() for column in self._columns)
        return [
            tuple(NearToken(i, backbone.tokenizer.decode([i]), c, d) for i, c, d in zip(*row, strict=True))
            for row in zip(token_ids, cosine, distance, strict=True)
        ]


def _drifts(rows: torch.Tensor, initial: torch.Tensor | None) -> list[tuple[float | None, float | None]]:
    if initial is None:
        return [(None, None)] * len(rows)
    start = initial.to(rows.device, torch.float32)
    distances = (rows - start).norm(dim=1).tolist()
    return list(zip(distances, F.cosine_similarity(rows, start, dim=1).tolist(), strict=True))
