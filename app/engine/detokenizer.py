"""Detokenizer: turns ids into text as they come, and finds stop strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_CONTEXT_TOKENS = 8


class Detokenizer:
    """Text of one sequence.

    Text that could still become a stop string is held back, so that a stop string is never shown in part.

    Args:
        context_ids: the ids in front; vocabularies that write blanks into tokens need them to get the first one right.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        context_ids: list[int],
        stop: tuple[str, ...] = (),
        *,
        include_stop: bool = False,
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._context = context_ids[-NUM_CONTEXT_TOKENS:]
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=True)
        self._ids: list[int] = []
        self._stop = stop
        self._include_stop = include_stop
        self._decoded = ""
        self._num_shown = 0

    def add(self, token_id: int) -> str | None:
        """Take in a token. Returns the stop string it completed, if any."""
        self._ids.append(token_id)
        chunk = self._stream.step(self._backend, token_id)
        if not chunk:
            return None
        start = max(0, len(self._decoded) - max(map(len, self._stop), default=0) + 1)
        self._decoded += chunk
        return self._cut_at_stop(start)

    def take(self) -> str:
        """The text that became certain since the last call."""
        return self._show(len(self._decoded) - self._num_held_back())

    def finish(self) -> str:
        """All text that is left, an unfinished character at its end included."""
        return self._show(len(self._decoded))

    def flush(self) -> str | None:
        """Decode what the stream still waits with: bytes that never became a character. Returns a stop string."""
        head = self._backend.decode(self._context, skip_special_tokens=True)
        whole = self._backend.decode([*self._context, *self._ids], skip_special_tokens=True)
        seen = head + self._decoded
        if whole.startswith(seen) and len(whole) > len(seen):
            self._decoded += whole[len(seen) :]
            return self._cut_at_stop(0)
        return None

    def _cut_at_stop(self, start: int) -> str | None:
        found = [(self._decoded.find(stop, start), stop) for stop in self._stop]
        place, stop = min((pair for pair in found if pair[0] >= 0), default=(-1, ""))
        if place < 0:
            return None
        self._decoded = self._decoded[: place + len(stop) if self._include_stop else place]
        return stop

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._decoded)), longest, -1):
                if self._decoded.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _show(self, end: int) -> str:
        shown = self._decoded[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return shown
