"""Which of the vocabulary's embeddings the rows of a soft prompt lie near, and how long those are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app.model.backbone import Backbone

CHUNK_SIZE = 8192


@dataclass(frozen=True, slots=True)
class NearToken:
    """Attributes: token: its text. cosine: of the angle between embedding and row. distance: L2 between them."""

    token_id: int
    token: str
    cosine: float
    distance: float


@torch.no_grad()
def vocabulary_norms(backbone: Backbone) -> torch.Tensor:
    """(vocab_size,) float32: L2 norm of every embedding."""
    return torch.cat([chunk.norm(dim=1) for _, chunk in _chunks(backbone)])


@torch.no_grad()
def find_neighbors(
    backbone: Backbone, rows: torch.Tensor, num_nearest: int, *, chunk_size: int = CHUNK_SIZE
) -> tuple[list[tuple[NearToken, ...]], list[tuple[NearToken, ...]]]:
    """For each row the nearest tokens by cosine and by distance, nearest first.

    Args:
        rows: (n, hidden_size) float32 on the backbone's device.
        chunk_size: tokens of the vocabulary to look at together.
    """
    num = min(num_nearest, backbone.vocab_size)
    best_cosine, best_distance = _BestTokens(num), _BestTokens(num)
    for start, chunk in _chunks(backbone, chunk_size):
        cosine = F.normalize(rows, dim=1) @ F.normalize(chunk, dim=1).T
        distance = torch.cdist(rows, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        best_cosine.add(start, cosine, cosine, distance)
        best_distance.add(start, -distance, cosine, distance)
    return best_cosine.tokens(backbone), best_distance.tokens(backbone)


def _chunks(backbone: Backbone, chunk_size: int = CHUNK_SIZE) -> Iterator[tuple[int, torch.Tensor]]:
    """(first id, embeddings (chunk, hidden_size) float32) over the vocabulary: a large one is never copied whole."""
    for start in range(0, backbone.vocab_size, chunk_size):
        token_ids = torch.arange(start, min(start + chunk_size, backbone.vocab_size), device=backbone.device)
        yield start, backbone.embed(token_ids).float()


class _BestTokens:
    """For each row the tokens of the highest rank so far, with their cosines and distances."""

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
