"""Warmer: task prompts are computed before the first request asks for them, while no request wants the device."""

from __future__ import annotations

from collections.abc import Callable

from app.engine.model_runner import ModelRunner
from app.engine.prefix.prefix_store import PrefixStore
from app.engine.scheduler import Scheduler
from app.engine.sequence import Prefix
from app.errors import NumericalError
from app.task_prompt import PromptKind, TaskPrompt, is_finite

MAX_MEMORY = 0.5
"""Share of the cache's blocks for prompts that no request has asked for yet; the others stay free for texts."""


class Warmer:
    """`warm` is called by the engine's thread between two steps; `wants` by any, since it only looks.

    In memory a prompt is put last in line: it is dropped before any that was used. If memory has no room to spare,
    it goes to the prefix store, as long as nothing has to leave that for it.

    Args:
        max_model_len: positions of a sequence; a prompt that fills them is of no use.
    """

    def __init__(
        self, scheduler: Scheduler, model_runner: ModelRunner, store: PrefixStore | None, *, max_model_len: int
    ) -> None:
        self._scheduler, self._model_runner, self._store = scheduler, model_runner, store
        self._max_model_len = max_model_len

    def wants(self, digest: str, kind: PromptKind, num_virtual_tokens: int) -> bool:
        """Whether warming this prompt now would spare its first request something."""
        if digest in self._scheduler.prefix_cache or num_virtual_tokens >= self._max_model_len:
            return False
        return self._has_memory(num_virtual_tokens) or self._has_store(digest, kind, num_virtual_tokens)

    def warm(self, prompt: TaskPrompt, should_stop: Callable[[], bool]) -> bool:
        """Compute a prompt, or read it from the store. Returns whether it was wanted and is warm now.

        Args: should_stop: asked between two forwards; what was computed so far is lost then.

        Raises NumericalError: its keys and values are not finite.
        """
        if not self.wants(prompt.digest, prompt.kind, prompt.num_virtual_tokens):
            return False
        stays = self._has_memory(prompt.num_virtual_tokens)
        if not self._make_room(prompt.num_virtual_tokens):
            return False
        prefix = self._scheduler.prefix_cache.make(prompt)
        try:
            if not self._compute(prefix, should_stop):
                return False
            self._keep(prefix, prompt.kind)
            if stays:
                self._scheduler.prefix_cache.put(prefix)
            return True
        finally:
            if prefix.key not in self._scheduler.prefix_cache:
                self._scheduler.block_manager.free(prefix)

    def _has_memory(self, num_virtual_tokens: int) -> bool:
        blocks = self._scheduler.block_manager
        num_left = blocks.num_free_blocks - blocks.num_blocks_for(num_virtual_tokens)
        return num_left >= (1 - MAX_MEMORY) * blocks.num_blocks

    def _has_store(self, digest: str, kind: PromptKind, num_virtual_tokens: int) -> bool:
        store, blocks = self._store, self._scheduler.block_manager
        return (
            store is not None
            and kind is not PromptKind.KV
            and blocks.num_blocks_for(num_virtual_tokens) <= blocks.num_blocks
            and digest not in store
            and store.has_room(num_virtual_tokens)
        )

    def _make_room(self, num_virtual_tokens: int) -> bool:
        """Whether there are blocks to compute in: free ones, else those of prompts that the store can give back."""
        store, num_blocks = self._store, self._scheduler.block_manager.num_blocks_for(num_virtual_tokens)
        return self._scheduler.prefix_cache.make_room(
            num_blocks, lambda prefix: store is not None and prefix.key in store
        )

    def _compute(self, prefix: Prefix, should_stop: Callable[[], bool]) -> bool:
        while not prefix.is_computed:
            if should_stop():
                return False
            batch = self._scheduler.schedule_alone(prefix)
            self._model_runner.run(batch)
            self._scheduler.advance(batch)
        return True

    def _keep(self, prefix: Prefix, kind: PromptKind) -> None:
        rows = self._model_runner.computed_rows(prefix)
        if not is_finite(rows):
            raise NumericalError("the prompt's keys and values are not finite")
        if self._store is not None and kind is not PromptKind.KV:
            self._store.keep(prefix.key, lambda: rows)
