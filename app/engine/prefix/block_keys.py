"""Content keys of blocks: equal keys mean equal keys and values, so that text computed once is found again.

The key of a block is a hash of the previous key and the block's token ids (vLLM's `hash_block_tokens`). The first one
continues the task prompt's digest and a salt, so a key stands for the whole way from position 0 on. SHA-256, because
whoever could make two texts collide would read from another's cache (CVE-2025-25183).
"""

from __future__ import annotations

import hashlib
from array import array

from app.engine.sequence import Prefix, Segment


def block_keys(segment: Segment, num_tokens: int, block_size: int) -> list[bytes]:
    """Keys of the blocks that the segment's first `num_tokens` tokens fill, from the first one with text in it on.

    They stay with the segment, so each is computed once. All ids of these tokens must be known.
    """
    num_virtual = segment.num_virtual_tokens
    num_keys = max(0, num_tokens // block_size - num_virtual // block_size)
    keys = segment.block_keys
    key = keys[-1] if keys else _root(segment)
    while len(keys) < num_keys:
        end = (num_virtual // block_size + len(keys) + 1) * block_size - num_virtual
        ids = array("q", segment.text_ids[max(0, end - block_size) : end])
        key = hashlib.sha256(key + ids.tobytes()).digest()
        keys.append(key)
    return keys[:num_keys]


def prompt_prefix(segment: Segment) -> Prefix | None:
    """The prefix of the task prompt that the segment's text follows."""
    prefix = segment.parent
    if prefix is None or not prefix.text_ids:
        return prefix
    return prompt_prefix(prefix)


def _root(segment: Segment) -> bytes:
    prefix = prompt_prefix(segment)
    return hashlib.sha256(repr((segment.cache_salt, prefix and prefix.key)).encode()).digest()
