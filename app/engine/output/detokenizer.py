"""Detokenizer: turns ids into text as they come, and finds stop strings; token_bytes: what single tokens look like.

All texts of models are made here, those of a stream and those that are measured, so that they are the same. What a
tokenizer's own `decode` may do afterwards to a whole text (`clean_up_tokenization_spaces`) is not done: a stream has
shown the blanks already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.sampling import SamplingParams

NUM_CONTEXT_TOKENS = 8
MAX_UNFINISHED_TOKENS = 16
UNFINISHED = "\ufffd"
SENTENCEPIECE_SPACE = "\u2581"
BYTE_TOKEN = re.compile(r"^<0x([0-9A-F]{2})>$")


class Detokenizer:
    """Text of one sequence.

    Text that could still become a stop string is held back, so that a stop string is never shown in part. The tokens
    are decoded together with the few before them, and text is taken over once it does not end within a character (the
    method of Hugging Face's text-generation-inference). `tokenizers.decoders.DecodeStream` is not used: it raises when
    byte tokens that are no text make what it decoded earlier look different.

    Args:
        context_ids: the ids before; vocabularies that write blanks into tokens need them to get the first one right.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        context_ids: list[int],
        stop: tuple[str, ...] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = context_ids[-NUM_CONTEXT_TOKENS:]
        self._num_read = len(self._ids)
        self._read_text = self._decode()
        self._stop = stop
        self._include_stop = include_stop
        self._decoded = ""
        self._num_shown = 0

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, context_ids: list[int], params: SamplingParams) -> Detokenizer:
        """As a request asks for it."""
        return cls(
            tokenizer,
            context_ids,
            params.stop,
            include_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
        )

    def add(self, token_id: int) -> str | None:
        """Take in a token. Returns the stop string it completed, if any."""
        self._ids.append(token_id)
        return self._extend(is_end=False)

    def take(self) -> str:
        """The text that became certain since the last call."""
        return self._show(len(self._decoded) - self._num_held_back())

    def finish(self) -> str:
        """All text that is left, held back or not."""
        return self._show(len(self._decoded))

    def flush(self) -> str | None:
        """Decode what still waits: bytes that never became a character. Returns a stop string."""
        return self._extend(is_end=True)

    def _decode(self) -> str:
        return decode_ids(self._tokenizer, self._ids, skip_special_tokens=self._skip_special_tokens)

    def _extend(self, *, is_end: bool) -> str | None:
        """Take over what the ids say beyond the text already read, unless its last character can still change."""
        text = self._decode()
        chunk = text[_num_shared(self._read_text, text) :]
        can_wait = len(self._ids) - self._num_read < MAX_UNFINISHED_TOKENS and not is_end
        if can_wait and (not chunk or text.endswith(UNFINISHED)):
            return None
        del self._ids[: self._num_read]
        self._num_read = len(self._ids)
        self._read_text = self._decode()
        longest_stop = max(map(len, self._stop), default=0)
        start = max(0, len(self._decoded) - longest_stop + 1)
        self._decoded += chunk
        return self._cut_at_stop(start)

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


def write_text(
    tokenizer: PreTrainedTokenizerFast, context_ids: Sequence[int], token_ids: Sequence[int], params: SamplingParams
) -> str:
    """The whole text of a sequence, as a stream of it would have shown it: up to a stop string, without the end."""
    detokenizer = Detokenizer.of(tokenizer, list(context_ids), params)
    if all(detokenizer.add(token_id) is None for token_id in token_ids):
        detokenizer.flush()
    return detokenizer.finish()


def decode_ids(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """The text of these ids alone."""
    text: str = tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    return text


def _num_shared(first: str, second: str) -> int:
    """Characters both begin with."""
    if second.startswith(first):
        return len(first)
    return next(i for i, pair in enumerate(zip_longest(first, second)) if pair[0] != pair[1])


def token_bytes(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bytes:
    """The bytes of a token: byte-level, byte-fallback and sentencepiece vocabularies; special tokens as text."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        return b""
    if token_id in tokenizer.added_tokens_decoder:
        return str(token).encode()
    if match := BYTE_TOKEN.match(token):
        return bytes([int(match[1], 16)])
    if SENTENCEPIECE_SPACE in token:
        return token.replace(SENTENCEPIECE_SPACE, " ").encode()
    table = _byte_level_table()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return str(token).encode()


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """Character to byte, as GPT-2's vocabulary writes bytes (Radford et al. 2019, `bytes_to_unicode`)."""
    return {character: byte for byte, character in bytes_to_unicode().items()}
