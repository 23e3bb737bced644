"""How likely each of several continuations is, with as few sequences as their common beginnings allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.engine.sequence import FinishReason

Continuation = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoringPath:
    """Ids to put after the text, and the ids whose log-probabilities are wanted at each place.

    Attributes:
        token_ids: a beginning that some continuations share.
        targets: number of ids of this path, from its start, to the ids wanted after them.
    """

    token_ids: Continuation
    targets: dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """Paths that together visit every node of the continuations' prefix tree once.

    A path ends one id before its continuations do, since the last id need not be put in to know how likely it is:
    labels of one token each need a single path of no ids at all.
    """

    continuations: tuple[Continuation, ...]
    paths: tuple[ScoringPath, ...]

    @classmethod
    def of(cls, continuations: Iterable[Sequence[int]]) -> ScoringPlan:
        """Args: continuations: ids of each, none of them empty."""
        wanted = tuple(tuple(continuation) for continuation in continuations)
        node_to_next: dict[Continuation, dict[int, None]] = {}
        for continuation in wanted:
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
        return cls(wanted, tuple(paths))

    @property
    def num_sequences(self) -> int:
        """Sequences of the engine that scoring all continuations of one text takes."""
        return len(self.paths)

    @property
    def max_path_len(self) -> int:
        """Ids of the longest path."""
        return max(len(path.token_ids) for path in self.paths)

    def sum(self, scores: Iterable[Mapping[tuple[int, int], float]], *, start: int = 0) -> list[float]:
        """The log-probability of each continuation.

        Args:
            scores: for each path, (index of a text token, id after it) to log-probability.
            start: index of the text's last token, after which the paths stand.
        """
        node_to_score = {
            (path.token_ids[: index - start], token_id): value
            for path, found in zip(self.paths, scores, strict=True)
            for (index, token_id), value in found.items()
        }
        return [
            sum(node_to_score[each[:i], token_id] for i, token_id in enumerate(each)) for each in self.continuations
        ]


@dataclass(frozen=True, slots=True)
class PathScores:
    """What one scored sequence found. Made once, when the sequence ends.

    Attributes:
        logprobs: (index of a text token, id after it) to log-probability.
        num_cached_tokens: tokens of prefixes that did not have to be computed for this sequence.
    """

    logprobs: dict[tuple[int, int], float]
    finish_reason: FinishReason
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scoring continuations of one text gave.

    Attributes:
        log_likelihoods: of each continuation, natural logarithm.
        num_cached_tokens: of the prompt and the text, that did not have to be computed.
    """

    log_likelihoods: list[float]
    num_cached_tokens: int
