"""What single tokens look like: the text and bytes shown with log-probabilities."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTENCEPIECE_SPACE = "\u2581"
BYTE_TOKEN = re.compile(r"^<0x([0-9A-F]{2})>$")


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
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
