"""Outcome: what a contender did with a workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Sequences are in the order of the workload's requests.

    Attributes:
        first_token_s: seconds from t = 0 to each request's first token.
        num_tokens: generated for each request.
        tokens: their ids; empty where the contender does not tell them.
        num_cached_tokens: prefix tokens that were found computed, over all requests.
        elsewhere_s: CPU time it took in another process, seconds.
    """

    first_token_s: tuple[float, ...]
    num_tokens: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...] = ()
    num_cached_tokens: int = 0
    elsewhere_s: float = 0.0

    @classmethod
    def of(
        cls,
        tokens: tuple[tuple[int, ...], ...],
        first_token_s: tuple[float, ...],
        *,
        num_cached_tokens: int = 0,
        elsewhere_s: float = 0.0,
    ) -> Outcome:
        """Of a contender that tells its tokens."""
        return cls(first_token_s, tuple(map(len, tokens)), tokens, num_cached_tokens, elsewhere_s)
