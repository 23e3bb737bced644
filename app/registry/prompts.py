"""Versions' prompts: read back from their files, and kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch

from app.errors import CorruptPrompt, InvalidInput
from app.model.backbone import Backbone
from app.registry.formats.binding import require_fit
from app.registry.formats.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, TensorFile
from app.registry.formats.peft_checkpoint import CONFIG_FILE, MAX_CONFIG_BYTES, TENSOR_FILE, PeftConfig, read_rows
from app.registry.formats.safetensors_file import INITIAL_FILE, decode_initial
from app.registry.publication import CARD_FILE
from app.registry.store import Store
from app.registry.task_record import version_key
from app.registry.version import Version
from app.task_prompt import TaskPrompt

MAX_CARD_BYTES = 2**20
_OVERHEAD_BYTES = 2_048
"""Python's and torch's objects around a prompt's values, measured generously."""


class PromptReader:
    """A version's files back into the task prompt that was published, bit for bit or not at all.

    Args: backbone: what the prompt must fit; None for looking at a registry without loading a model.
    """

    def __init__(self, store: Store, backbone: Backbone | None) -> None:
        self._store = store
        self._backbone = backbone

    def read(self, version: Version) -> TaskPrompt:
        """Raises CorruptPrompt, NotFound (no files), BackboneMismatch, InvalidInput (overflow in the model's dtype)."""
        manifest = self.read_manifest(version)
        fingerprint = manifest.backbone.fingerprint
        if manifest.tensor is None:
            prompt = TaskPrompt.from_text(manifest.text or "", manifest.token_ids, fingerprint)
        else:
            content = self._checked_content(version, TENSOR_FILE, manifest.tensor)
            try:
                config = PeftConfig.decode(self._content(version, CONFIG_FILE, MAX_CONFIG_BYTES))
                prompt = TaskPrompt.from_rows(manifest.kind, read_rows(config, content), fingerprint)
            except InvalidInput as error:
                raise CorruptPrompt(f"{version.id}: {error.message}") from error
        if prompt.digest != version.digest:
            raise CorruptPrompt(f"{version.id} does not hold what was published as it")
        if self._backbone is not None:
            require_fit(prompt, self._backbone)
        return prompt

    def read_manifest(self, version: Version) -> Manifest:
        """Raises CorruptPrompt: damaged, or not the one that was there when the version was listed. NotFound."""
        try:
            manifest = Manifest.decode(self._content(version, MANIFEST_FILE, MAX_MANIFEST_BYTES))
        except CorruptPrompt as error:
            raise CorruptPrompt(f"{version.id}: {error.message}") from error
        if manifest.digest != version.digest:
            raise CorruptPrompt(f"{version.id} was replaced behind the registry's back")
        return manifest

    def read_initial(self, version: Version) -> torch.Tensor | None:
        """The rows tuning started from, float32 on CPU; None if they were not kept. Raises as `read_manifest` does."""
        stored = self.read_manifest(version).initial
        if stored is None:
            return None
        try:
            return decode_initial(self._checked_content(version, INITIAL_FILE, stored))
        except InvalidInput as error:
            raise CorruptPrompt(f"{version.id}: {INITIAL_FILE}: {error.message}") from error

    def read_files(self, version: Version, *, with_initial: bool = True) -> dict[str, bytes]:
        """All files of the version, once they are known to be right. Raises as `read` does.

        Args: with_initial: without it, as if the rows that tuning started from had not been kept.
        """
        manifest = self.read_manifest(version)
        self.read(version)
        self.read_initial(version)
        name_to_limit = {MANIFEST_FILE: MAX_MANIFEST_BYTES, CARD_FILE: MAX_CARD_BYTES, CONFIG_FILE: MAX_CONFIG_BYTES}
        name_to_limit |= {name: stored.num_bytes for name, stored in manifest.tensor_files.items()}
        present = self._store.entries(version_key(version.task, version.number))
        files = {name: self._content(version, name, limit) for name, limit in name_to_limit.items() if name in present}
        if with_initial or INITIAL_FILE not in files:
            return files
        del files[INITIAL_FILE]
        return files | {MANIFEST_FILE: manifest.model_copy(update={"initial": None}).encode()}

    def _checked_content(self, version: Version, name: str, stored: TensorFile) -> bytes:
        content = self._content(version, name, stored.num_bytes)
        if TensorFile.of(content).sha256 != stored.sha256:
            raise CorruptPrompt(f"{version.id}: {name} is damaged")
        return content

    def _content(self, version: Version, name: str, max_bytes: int) -> bytes:
        """A file is measured before it is read: a different one may lie there by now."""
        key = f"{version_key(version.task, version.number)}/{name}"
        entry = self._store.entry(key)
        if entry is not None and entry.num_bytes > max_bytes:
            raise CorruptPrompt(f"{version.id}: {name} is larger than when it was published")
        return self._store.read(key)


class PromptCache:
    """Prompts by digest, at most `max_bytes` of them: the least recently used goes first; a larger one is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self._digest_to_prompt: OrderedDict[str, TaskPrompt] = OrderedDict()
        self._lock = Lock()

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
            if size > self._max_bytes or (not may_displace and self.num_bytes + size > self._max_bytes):
                return
            self._digest_to_prompt[prompt.digest] = prompt
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                _, dropped = self._digest_to_prompt.popitem(last=False)
                self.num_bytes -= _size(dropped)


def _size(prompt: TaskPrompt) -> int:
    return prompt.num_bytes + _OVERHEAD_BYTES
