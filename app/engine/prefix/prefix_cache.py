"""PrefixCache: what was computed and can serve again, by content, least recently used dropped first.

Two kinds of content. Task prompts, and texts that siblings share while they run, are prefixes with blocks of their own.
Any other text is found again block by block: a conversation's next turn continues the blocks of the earlier turns, and
so does a long instruction that many inputs follow.

The key of a block is a hash of the previous key and the block's token ids (vLLM's `hash_block_tokens`). The first one
continues the task prompt's digest and a salt, so a key stands for the whole way from position 0 on: equal keys mean
equal keys and values. SHA-256, because whoever could make two texts collide would read from another's cache
(CVE-2025-25183).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.engine.block_manager import BlockManager
from app.engine.sequence import Prefix, Segment, Sequence

if TYPE_CHECKING:
    from app.engine.prefix.prefix_store import PrefixStore
    from app.task_prompt import TaskPrompt


class PrefixCache:
    """A prefix lives while sequences use it, and after that until its blocks are needed.

    Args:
        is_text_kept: whether blocks of text are found again after their sequence ended.
        store: asked for prompts before they are computed.
    """

    def __init__(
        self, block_manager: BlockManager, *, is_text_kept: bool = True, store: PrefixStore | None = None
    ) -> None:
        self._store = store
        self._block_manager = block_manager
        self._is_text_kept = is_text_kept
        self._key_to_prefix: OrderedDict[str, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._key_to_prefix)

    def __contains__(self, key: str) -> bool:
        return key in self._key_to_prefix

    @property
    def prefixes(self) -> list[Prefix]:
        return list(self._key_to_prefix.values())

    def acquire(self, sequence: Sequence) -> None:
        """Give the sequence the prefix it continues, new or known, and count it as a user."""
        prompt = sequence.prompt
        parent = None if prompt is None else self._use(self._key_to_prefix.get(prompt.digest) or self.make(prompt))
        if sequence.num_shared_tokens:
            parent = self._acquire_text(sequence, parent)
        sequence.parent = parent
        sequence.num_computed_tokens = sequence.num_parent_tokens
        self._reuse_text(sequence)
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = _num_computed_tokens(sequence)

    def make(self, prompt: TaskPrompt) -> Prefix:
        """A prefix that no sequence finds yet, with keys and values that the prompt is or that were computed before."""
        rows, num_rows = None, prompt.num_virtual_tokens
        if prompt.kind == "kv":
            rows = prompt.rows
        elif self._store is not None:
            rows = self._store.find(prompt.digest, num_rows)
        return Prefix(key=prompt.digest, content=prompt, num_own_tokens=num_rows, rows=rows)

    def put(self, prefix: Prefix) -> None:
        """Let sequences find a computed prefix that none uses yet: the first to go when its room is needed."""
        assert prefix.is_computed, "others would wait for what is not being computed"
        assert prefix.key not in self, "it is there already"
        self._key_to_prefix[prefix.key] = prefix
        self._key_to_prefix.move_to_end(prefix.key, last=False)

    def expect(self, sequence: Sequence) -> None:
        """The sequence waits to be admitted: what it will ask for can be fetched in the meantime."""
        prompt = sequence.prompt
        if self._store is not None and prompt is not None and prompt.digest not in self._key_to_prefix:
            self._store.expect(prompt.digest)

    def keep_text(self, segment: Segment, start: int, end: int) -> None:
        """Let others find the blocks of text that the tokens from position `start` to before `end` filled.

        All ids of these tokens must be known. Nothing happens if the segment has given its blocks back.
        """
        size = self._block_manager.block_size
        num_full_before, num_full = start // size, end // size
        if not self._is_text_kept or num_full_before == num_full or not segment.text_ids:
            return
        if segment.num_computed_tokens < end:
            return
        prompt = prompt_prefix(segment)
        if prompt is not None and not prompt.is_kept:
            return
        num_new = num_full - num_full_before
        keys = block_keys(segment, end, size)[-num_new:]
        for block, key in zip(segment.block_table[num_full_before:num_full], keys, strict=True):
            self._block_manager.remember(block, key)

    def clear(self) -> None:
        """Forget all that is not in use, and all texts."""
        self._block_manager.forget_all()
        while self.evict():
            pass

    def release(self, sequence: Sequence) -> None:
        """Count the sequence out again. Call after its blocks were freed."""
        if sequence.parent is not None:
            self._drop_user(sequence.parent)
        sequence.parent = None

    def evict(self, may_go: Callable[[Prefix], bool] = lambda _: True) -> bool:
        """Free the blocks of the least recently used prefix that is not in use and may go; False if there is none."""
        for prefix in self._key_to_prefix.values():
            if prefix.num_users == 0 and may_go(prefix):
                self._remove(prefix)
                return True
        return False

    def make_room(self, num_blocks: int, may_go: Callable[[Prefix], bool] = lambda _: True) -> bool:
        """Evict until that many blocks are free; False if too few may go."""
        while self._block_manager.num_free_blocks < num_blocks:
            if not self.evict(may_go):
                return False
        return True

    def forget(self, prefix: Prefix) -> None:
        """Let no later sequence find it; its present users keep it to their end."""
        prefix.is_kept = False
        if self._store is not None:
            self._store.forget(prefix.key)
        if self._key_to_prefix.get(prefix.key) is prefix:
            if prefix.num_users == 0:
                self._remove(prefix)
            else:
                # users still hold it, so it stays among the prefixes, under a key that no content has
                del self._key_to_prefix[prefix.key]
                prefix.key = f"forgotten-{id(prefix)}"
                self._key_to_prefix[prefix.key] = prefix

    def _acquire_text(self, sequence: Sequence, parent: Prefix | None) -> Prefix:
        ids = tuple(sequence.token_ids[: sequence.num_shared_tokens])
        key = hashlib.sha256(repr((parent and parent.key, sequence.cache_salt, ids)).encode()).hexdigest()
        prefix = self._key_to_prefix.get(key)
        if prefix is None:
            prefix = Prefix(key=key, content=ids, num_own_tokens=len(ids), parent=parent, is_kept=False)
            prefix.cache_salt = sequence.cache_salt
            prefix.num_computed_tokens = prefix.num_parent_tokens
            self._reuse_text(prefix)
            return self._use(prefix)
        if parent is not None:
            self._drop_user(parent)
        return self._use(prefix)

    def _reuse_text(self, segment: Segment) -> None:
        """Give a segment that has nothing yet the blocks of its text that are there already."""
        parent = segment.parent
        if not self._is_text_kept or (parent is not None and not parent.is_computed):
            return
        size = self._block_manager.block_size
        num_before = segment.num_parent_tokens // size
        keys = block_keys(segment, segment.num_reusable_tokens, size)
        self._block_manager.reuse(segment, keys[num_before - segment.num_virtual_tokens // size :])

    def _use(self, prefix: Prefix) -> Prefix:
        self._key_to_prefix[prefix.key] = prefix
        self._key_to_prefix.move_to_end(prefix.key)
        prefix.num_users += 1
        return prefix

    def _drop_user(self, prefix: Prefix) -> None:
        prefix.num_users -= 1
        assert prefix.num_users >= 0, "a prefix was released twice"
        if prefix.num_users == 0 and not (prefix.is_kept and prefix.is_computed):
            self._remove(prefix)

    def _remove(self, prefix: Prefix) -> None:
        del self._key_to_prefix[prefix.key]
        self._block_manager.free(prefix)
        if prefix.parent is not None:
            self._drop_user(prefix.parent)


def _num_computed_tokens(segment: Segment) -> int:
    """Tokens of the segment, and of what it continues, that were computed before."""
    if isinstance(segment, Prefix) and segment.is_loadable and segment.is_stored:
        return segment.num_tokens
    parent = segment.parent
    return segment.num_computed_tokens if parent is None or parent.is_computed else _num_computed_tokens(parent)


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
