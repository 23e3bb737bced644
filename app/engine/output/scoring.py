"""How likely each of several continuations is, with as few sequences as their common beginnings allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Continuation = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoringPath:
    """Ids to put behind the text, and which ids' log-probabilities are wanted where.

    Attributes:
        token_ids: a beginning that some continuations share.
        targets: number of ids of this path in front, to the ids wanted behind them.
    """

    token_ids: Continuation
    targets: dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scoring continuations of one text gave.

    Attributes:
        log_likelihoods: of each continuation, natural logarithm.
        num_cached_tokens: of the prompt and the text, that did not have to be computed.
    """

    log_likelihoods: list[float]
    num_cached_tokens: int


def plan_scoring(continuations: Sequence[Continuation]) -> list[ScoringPath]:
    """Paths that together visit every node of the continuations' prefix tree once.

    A path ends one id before its continuations do, since the last id need not be put in to know how likely it is:
    labels of one token each need a single path of no ids at all.
    """
    node_to_next: dict[Continuation, dict[int, None]] = {}
    for continuation in continuations:
        for i, token_id in enumerate(continuation):
            node_to_next.setdefault(continuation[:i], {})[token_id] = None
    inner = {node[:i] for node in node_to_next for i in range(len(node))}
    visited: set[Continuation] = set()
    paths = []
    for leaf in (node for node in node_to_next if node not in inner):
        nodes = [leaf[:i] for i in range(len(leaf) + 1)]
        targets = {len(node): tuple(node_to_next[node]) for node in nodes if node not in visited}
        visited.update(nodes)
        paths.append(ScoringPath(leaf, targets))
    return paths


def sum_scores(
    continuations: Sequence[Continuation], paths: Sequence[ScoringPath], scores: Sequence[dict[tuple[int, int], float]]
) -> list[float]:
    """The log-probability of each continuation.

    Args:
        scores: for each path, (number of ids in front, id) to log-probability.
    """
    node_to_score = {
        (path.token_ids[:place], token_id): value
        for path, found in zip(paths, scores, strict=True)
        for (place, token_id), value in found.items()
    }
    return [sum(node_to_score[c[:i], token_id] for i, token_id in enumerate(c)) for c in continuations]
