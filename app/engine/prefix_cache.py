"""PrefixCache: the prefixes in memory, by content digest, least recently used dropped first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from app.engine.block_manager import BlockManager
from app.engine.sequence import Prefix, Sequence


class PrefixCache:
    """A prefix lives while somebody uses it, and after that until its blocks are needed."""

    def __init__(self, block_manager: BlockManager) -> None:
        self._block_manager = block_manager
        self._key_to_prefix: OrderedDict[str, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._key_to_prefix)

    @property
    def prefixes(self) -> list[Prefix]:
        return list(self._key_to_prefix.values())

    def acquire(self, sequence: Sequence) -> None:
        """Give the sequence the prefix it continues, new or known, and count it as a user."""
        parent = self._acquire_prompt(sequence)
        if sequence.num_shared_tokens:
            parent = self._acquire_text(sequence, parent)
        sequence.parent = parent
        if parent is not None:
            sequence.num_computed_tokens = parent.num_tokens
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = _num_computed_tokens(parent)

    def release(self, sequence: Sequence) -> None:
        """Count the sequence out again. Call after its blocks were freed."""
        if sequence.parent is not None:
            self._drop_user(sequence.parent)
        sequence.parent = None

    def evict(self) -> bool:
        """Free the blocks of the least recently used prefix nobody uses; False when there is none."""
        for prefix in self._key_to_prefix.values():
            if prefix.num_users == 0:
                self._remove(prefix)
                return True
        return False

    def forget(self, prefix: Prefix) -> None:
        """Let no later sequence find it; its present users keep it to their end."""
        prefix.is_kept = False
        if self._key_to_prefix.get(prefix.key) is prefix:
            if prefix.num_users == 0:
                self._remove(prefix)
            else:
                # users still hold it, so it must stay in the books, under a key that no content has
                del self._key_to_prefix[prefix.key]
                prefix.key = f"forgotten-{id(prefix)}"
                self._key_to_prefix[prefix.key] = prefix

    def _acquire_prompt(self, sequence: Sequence) -> Prefix | None:
        prompt = sequence.prompt
        if prompt is None:
            return None
        prefix = self._key_to_prefix.get(prompt.digest)
        if prefix is None:
            prefix = Prefix(
                key=prompt.digest,
                content=prompt,
                num_own_tokens=prompt.num_virtual_tokens,
                is_loadable=prompt.kind == "kv",
            )
        return self._use(prefix)

    def _acquire_text(self, sequence: Sequence, parent: Prefix | None) -> Prefix:
        ids = tuple(sequence.token_ids[: sequence.num_shared_tokens])
        key = _text_key(parent, ids)
        prefix = self._key_to_prefix.get(key)
        if prefix is None:
            prefix = Prefix(key=key, content=ids, num_own_tokens=len(ids), parent=parent, is_kept=False)
            prefix.num_computed_tokens = prefix.num_parent_tokens
            return self._use(prefix)
        if parent is not None:
            self._drop_user(parent)
        return self._use(prefix)

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


def _num_computed_tokens(prefix: Prefix) -> int:
    """Tokens of the prefix and what it continues that are in the cache."""
    parent = prefix.parent
    return prefix.num_computed_tokens if parent is None or parent.is_computed else parent.num_computed_tokens


def _text_key(parent: Prefix | None, token_ids: tuple[int, ...]) -> str:
    content = ",".join(map(str, token_ids))
    return hashlib.sha256(f"{parent.key if parent else ''}|{content}".encode()).hexdigest()
