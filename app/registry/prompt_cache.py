"""PromptCache: prompts in memory by digest; the least recently used is dropped first."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from app.task_prompt import TaskPrompt

_OVERHEAD_BYTES = 2_048
"""Python's and torch's objects around a prompt's values, measured generously."""


class PromptCache:
    """Holds at most `max_bytes`; a larger prompt is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._digest_to_prompt: OrderedDict[str, TaskPrompt] = OrderedDict()
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._digest_to_prompt)

    def get(self, digest: str) -> TaskPrompt | None:
        with self._lock:
            prompt = self._digest_to_prompt.get(digest)
            if prompt is not None:
                self._digest_to_prompt.move_to_end(digest)
            return prompt

    def put(self, prompt: TaskPrompt, *, may_displace: bool = True) -> None:
        """Args: may_displace: whether others may be dropped for it; if not, it is kept only if there is room."""
        with self._lock:
            if prompt.digest in self._digest_to_prompt:
                self._digest_to_prompt.move_to_end(prompt.digest)
                return
            size = _size(prompt)
            if size > self._max_bytes or (not may_displace and self._num_bytes + size > self._max_bytes):
                return
            self._digest_to_prompt[prompt.digest] = prompt
            self._num_bytes += size
            while self._num_bytes > self._max_bytes:
                _, dropped = self._digest_to_prompt.popitem(last=False)
                self._num_bytes -= _size(dropped)


def _size(prompt: TaskPrompt) -> int:
    return prompt.num_bytes + _OVERHEAD_BYTES
