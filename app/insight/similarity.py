"""What the rows of a prompt are like: one another, another prompt's rows, and the vocabulary's embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering

from app.errors import BackboneMismatch, InvalidInput
from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt

CLUSTER_COSINE = 0.5
"""Rows of a cluster have something in common."""
DUPLICATE_COSINE = 0.95
"""Near-duplicates: one of them would probably be enough."""
CHUNK_SIZE = 8192

Groups: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One row compared with the other prompt's.

    Attributes:
        distance: L2 to the row of the same index; None if the other prompt has none.
        cosine: of the angle between them; None likewise.
        nearest: index of the other prompt's row with the smallest angle.
        nearest_cosine: of that angle.
    """

    index: int
    distance: float | None
    cosine: float | None
    nearest: int
    nearest_cosine: float


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """What changed from another prompt.

    Attributes:
        model: the other prompt's name.
        num_virtual_tokens: the other prompt's.
        is_same: whether both hold the same values.
    """

    model: str
    num_virtual_tokens: int
    is_same: bool
    rows: tuple[RowDifference, ...]


def cosines(rows: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Args: rows: (n, width); others: (m, width), the rows themselves when None. Returns (n, m) float32, 0 for a row
    of length 0."""
    unit = F.normalize(rows.float(), dim=1)
    return unit @ (unit if others is None else F.normalize(others.float(), dim=1)).T


def group_rows(similarity: torch.Tensor, least: float) -> Groups:
    """Groups of two or more rows, any two of which are at least that similar; larger groups first.

    Complete linkage (Sørensen 1948) on the cosine distance.

    Args: similarity: (n, n), the `cosines` of rows with themselves.
    """
    if len(similarity) < 2:
        return ()
    linkage = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="complete", distance_threshold=1.0 - least + 1e-6
    )
    assigned = linkage.fit_predict((1.0 - similarity).clamp(min=0.0).cpu().numpy()).tolist()
    members: dict[int, list[int]] = {}
    for row, group in enumerate(assigned):
        members.setdefault(group, []).append(row)
    groups = [tuple(rows) for rows in members.values() if len(rows) > 1]
    return tuple(sorted(groups, key=lambda rows: (-len(rows), rows)))


def compare_prompts(prompt: TaskPrompt, other: TaskPrompt, other_name: str) -> PromptDifference:
    """Raises InvalidInput, BackboneMismatch: they cannot be compared."""
    if prompt.backbone_fingerprint != other.backbone_fingerprint:
        raise BackboneMismatch("the two prompts were made for different backbones", param="compare")
    if prompt.rows is None or other.rows is None or prompt.kind is not other.kind:
        raise InvalidInput(f"a prompt of kind {prompt.kind} cannot be compared with {other.kind}", param="compare")
    similarity = cosines(prompt.rows, other.rows)
    nearest = similarity.max(dim=1)
    common = min(len(prompt.rows), len(other.rows))
    distances = (prompt.rows[:common] - other.rows[:common]).norm(dim=1).tolist()
    return PromptDifference(
        other_name,
        other.num_virtual_tokens,
        prompt.digest == other.digest,
        tuple(
            RowDifference(
                index=i,
                distance=distances[i] if i < common else None,
                cosine=float(similarity[i, i]) if i < common else None,
                nearest=int(nearest.indices[i]),
                nearest_cosine=float(nearest.values[i]),
            )
            for i in range(len(prompt.rows))
        ),
    )


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
    by_cosine: list[tuple[torch.Tensor, ...]] = []
    by_distance: list[tuple[torch.Tensor, ...]] = []
    for start, chunk in _chunks(backbone, chunk_size):
        cosine = F.normalize(rows, dim=1) @ F.normalize(chunk, dim=1).T
        distance = torch.cdist(rows, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        for rank, kept in ((cosine, by_cosine), (-distance, by_distance)):
            best = rank.topk(min(num, len(chunk)), dim=1).indices
            kept.append((rank.gather(1, best), start + best, cosine.gather(1, best), distance.gather(1, best)))
    return _best_tokens(backbone, by_cosine, num), _best_tokens(backbone, by_distance, num)


def _chunks(backbone: Backbone, chunk_size: int = CHUNK_SIZE) -> Iterator[tuple[int, torch.Tensor]]:
    """(first id, embeddings (chunk, hidden_size) float32) over the vocabulary: a large one is never copied whole."""
    for start in range(0, backbone.vocab_size, chunk_size):
        token_ids = torch.arange(start, min(start + chunk_size, backbone.vocab_size), device=backbone.device)
        yield start, backbone.embed(token_ids).float()


def _best_tokens(backbone: Backbone, kept: list[tuple[torch.Tensor, ...]], num: int) -> list[tuple[NearToken, ...]]:
    """Args: kept: of each chunk the best tokens' rank, id, cosine and distance, each (n, at most num)."""
    rank, *columns = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
    order = rank.topk(num, dim=1).indices
    token_ids, cosine, distance = (column.gather(1, order).tolist() for column in columns)
    return [
        tuple(NearToken(i, backbone.tokenizer.decode([i]), c, d) for i, c, d in zip(*row, strict=True))
        for row in zip(token_ids, cosine, distance, strict=True)
    ]
