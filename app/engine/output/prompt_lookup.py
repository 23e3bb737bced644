"""PromptLookup: guesses at what comes next, from what came next before (Saxena 2023, "Prompt Lookup Decoding").

Answers that copy from their text, as headlines and corrections do, are guessed some tokens ahead; the model looks at
the guesses and the token in front of them in one step, and as many are kept as it would have chosen itself. Answers are
those without guesses, token for token, drawn ones too: a token's random number depends on its place alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

LONGEST_MATCH = 3


def count_right(guess: Sequence[int], chosen: Sequence[int]) -> int:
    """How many guessed ids were chosen too, up to the first that was not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guess, chosen, strict=False)))


class PromptLookup:
    """Of one sequence, whose ids it is given again and again as they become more."""

    def __init__(self) -> None:
        self._to_next: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def guess(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """At most so many ids behind the last: those behind the latest earlier place with the longest match.

        Args: token_ids: those of the call before, and what came since.
        """
        for end in range(self._num_seen + 1, len(token_ids)):  # the last id has nothing behind it yet
            for length in range(1, min(LONGEST_MATCH, end) + 1):
                self._to_next[tuple(token_ids[end - length : end])] = end
        self._num_seen = max(self._num_seen, len(token_ids) - 1)
        for length in range(min(LONGEST_MATCH, len(token_ids)), 0, -1):
            start = self._to_next.get(tuple(token_ids[-length:]))
            if start is not None:
                return list(token_ids[start : start + num_tokens])
        return []
