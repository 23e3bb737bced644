"""Log-probabilities in OpenAI's two formats."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from app.engine.output.detokenizer import token_bytes
from app.http.openai.chat_schema import ChatLogprobs, TokenLogprobs, TopLogprob
from app.http.openai.completions_schema import Logprobs
from app.model.sampler import TokenLogprob

LOWEST = -9999.0
"""What OpenAI writes for a token that cannot be: JSON has no infinity."""


class LegacyLogprobs:
    """The four lists of `/v1/completions` for one choice, chunk by chunk.

    A token that is a part of a character shows as `bytes:\\xe2\\x80`, as at OpenAI, so that different tokens stay
    different. Offsets count characters of the text; special tokens take none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def format(self, token_ids: Sequence[int], entries: Sequence[TokenLogprob | None]) -> Logprobs:
        """Args: entries: one for each token; None for a token that nothing precedes."""
        return Logprobs(
            tokens=[self._show(token_id) for token_id in token_ids],
            token_logprobs=[None if entry is None else max(entry.logprob, LOWEST) for entry in entries],
            top_logprobs=[None if entry is None else self._alternatives(entry) for entry in entries],
            text_offset=[self._advance(token_id) for token_id in token_ids],
        )

    def _alternatives(self, entry: TokenLogprob) -> dict[str, float]:
        ranked: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            ranked.setdefault(self._show(token_id), max(logprob, LOWEST))
        return ranked

    def _show(self, token_id: int) -> str:
        content = token_bytes(self._tokenizer, token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._special_ids:
            self._offset += len(self._decoder.decode(token_bytes(self._tokenizer, token_id)))
        return offset


def chat_logprobs(tokenizer: PreTrainedTokenizerFast, entries: Sequence[TokenLogprob]) -> ChatLogprobs:
    """The nested format of `/v1/chat/completions`."""
    return ChatLogprobs(content=[_chat_token(tokenizer, entry) for entry in entries], refusal=None)


def _chat_token(tokenizer: PreTrainedTokenizerFast, entry: TokenLogprob) -> TokenLogprobs:
    chosen = _chat_alternative(tokenizer, entry.token_id, entry.logprob)
    top = [_chat_alternative(tokenizer, token_id, logprob) for token_id, logprob in entry.top]
    return TokenLogprobs(token=chosen.token, bytes=chosen.bytes, logprob=chosen.logprob, top_logprobs=top)


def _chat_alternative(tokenizer: PreTrainedTokenizerFast, token_id: int, logprob: float) -> TopLogprob:
    content = token_bytes(tokenizer, token_id)
    return TopLogprob(token=content.decode(errors="replace"), bytes=list(content), logprob=max(logprob, LOWEST))
