"""Groups of rows that point the same way: virtual tokens of a prompt that say nearly the same."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering

CLUSTER_COSINE = 0.5
"""Rows of a cluster have something in common."""
DUPLICATE_COSINE = 0.95
"""Near-duplicates: one of them would probably be enough."""

Groups: TypeAlias = tuple[tuple[int, ...], ...]


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
