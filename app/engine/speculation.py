"""Speculation: tokens that may come next, tried ahead in one step (Saxena 2023, "Prompt Lookup Decoding").

Answers that copy from their text, as headlines and corrections do, are proposed some tokens ahead. The model looks at
the proposed tokens and the last known one in one step, and as many are kept as it would have chosen itself. Answers
are those without speculation, token for token, drawn ones too: a token's random number depends on its place alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from itertools import groupby, takewhile
from typing import TypeVar
from weakref import WeakKeyDictionary

from app.engine.sequence import Segment, Sequence

LONGEST_MATCH = 3
DEVICE_TO_MAX_TOKENS = {"cpu": 6, "cuda": 64}
"""Tokens in a step that take hardly longer than one: weights are read once for all, and up to here any are proposed.
On CUDA not measured yet."""

Logprob = TypeVar("Logprob")


class PromptLookup:
    """Proposes what followed the last ids when they came before: the latest of the places with the longest match."""

    def __init__(self) -> None:
        self._to_next: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def propose(self, token_ids: Ids[int], max_tokens: int) -> list[int]:
        """Ids that may follow, at most that many.

        Args: token_ids: those of the previous call, and what came since.
        """
        for end in range(self._num_seen + 1, len(token_ids)):  # nothing follows the last id yet
            for length in range(1, min(LONGEST_MATCH, end) + 1):
                self._to_next[tuple(token_ids[end - length : end])] = end
        self._num_seen = max(self._num_seen, len(token_ids) - 1)
        for length in range(min(LONGEST_MATCH, len(token_ids)), 0, -1):
            start = self._to_next.get(tuple(token_ids[-length:]))
            if start is not None:
                return list(token_ids[start : start + max_tokens])
        return []


class Speculation:
    """Gives sequences that decode tokens to try, and settles which of them count.

    Args:
        max_proposed: tokens proposed for a sequence in a step.
        device_type: of the device, as torch names it.
    """

    def __init__(self, max_proposed: int, device_type: str) -> None:
        self._max_proposed = max_proposed
        self._max_step_tokens = DEVICE_TO_MAX_TOKENS.get(device_type, DEVICE_TO_MAX_TOKENS["cpu"])
        self._sequence_to_lookup: WeakKeyDictionary[Sequence, PromptLookup] = WeakKeyDictionary()

    def propose(self, running: Ids[Sequence], num_free_blocks: int) -> None:
        """Propose for all of these, as long as the step is small and blocks are not short."""
        for sequence in running:
            sequence.spec_token_ids = []
        num_running = max(1, len(running))
        num_each = min(self._max_proposed, self._max_step_tokens // num_running - 1)
        if num_each < 1 or num_free_blocks < num_running * (1 + num_each):
            return
        for sequence in running:
            max_tokens = min(num_each, _max_useful(sequence))
            if max_tokens > 0:
                if sequence not in self._sequence_to_lookup:
                    self._sequence_to_lookup[sequence] = PromptLookup()
                sequence.spec_token_ids = self._sequence_to_lookup[sequence].propose(sequence.token_ids, max_tokens)

    def settle(
        self, choices: Ids[tuple[Sequence, int, Logprob]], num_rejected: dict[Segment, int]
    ) -> list[tuple[Sequence, int, Logprob]]:
        """The choices that count: the first of each sequence, and one after each proposed token that was right.

        Args:
            choices: of each sequence the token chosen after its last known one, and after each proposed one.
            num_rejected: gets the number of tokens computed for each sequence that were proposed in vain.
        """
        counting: list[tuple[Sequence, int, Logprob]] = []
        for sequence, group in groupby(choices, key=lambda choice: choice[0]):
            made = list(group)
            num_right = count_right(sequence.spec_token_ids, [token_id for _, token_id, _ in made[:-1]])
            counting += made[: num_right + 1]
            if sequence.spec_token_ids:
                num_rejected[sequence] = num_wrong = len(made) - 1 - num_right
                sequence.num_computed_tokens -= num_wrong
                sequence.num_pending -= num_wrong
                del sequence.spec_token_ids[num_right:]
        return counting


def count_right(proposed: Ids[int], chosen: Ids[int]) -> int:
    """How many proposed ids were chosen too, up to the first that was not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(proposed, chosen, strict=False)))


def _max_useful(sequence: Sequence) -> int:
    """How many tokens after the next one may be tried; none if a choice depends on those before it."""
    if not sequence.is_decoding or sequence.params.has_penalties:
        return 0
    return sequence.params.max_tokens - sequence.num_generated_tokens - 1
