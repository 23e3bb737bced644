"""The examples that versions were tuned on, where their owner asked to keep them: `<task>/examples/<sha256>.jsonl`.

They make a version for another backbone without anyone looking for them again. They stay in the registry's folder:
nothing serves them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import CorruptPrompt, NotFound
from app.registry.store import Store

FOLDER = "examples"
PROVENANCE = "kept_examples"
"""What a version's provenance says of them, and under which name."""
_FILE = re.compile(r"([0-9a-f]{64})\.jsonl")


@dataclass(frozen=True)
class TunedOn:
    """Packed examples, a line each (`app.measure.dataset.pack_examples`). Attributes: validation: held out."""

    train: bytes
    validation: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.train + self.validation).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """What a version says of them."""
        lengths = {"num_train": self.train.count(b"\n"), "num_validation": self.validation.count(b"\n")}
        return {PROVENANCE: {"sha256": self.sha256, **lengths}}


class KeptExamples:
    """Of all tasks, each content once. Call what writes while `Catalog.writing`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, task: str, examples: TunedOn) -> None:
        key = _key(task, examples.sha256)
        if self._store.entry(key) is None:
            self._store.replace(key, examples.train + examples.validation)

    def read(self, task: str, provenance: Mapping[str, Any]) -> TunedOn | None:
        """What a version with this provenance was tuned on; None if it was not kept, or is not there any more.

        Raises CorruptPrompt: the file is not what was written.
        """
        named = _named_in(provenance)
        if named is None:
            return None
        sha256, num_train = named
        try:
            content = self._store.read(_key(task, sha256))
        except NotFound:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CorruptPrompt(f"{_key(task, sha256)} is damaged")
        lines = content.splitlines(keepends=True)
        return TunedOn(b"".join(lines[:num_train]), b"".join(lines[num_train:]))

    def clear(self, task: str, provenances: Iterable[Mapping[str, Any]]) -> None:
        """Remove what no version needs any more. Args: provenances: of the versions that are left."""
        used = {named[0] for named in map(_named_in, provenances) if named}
        folder = f"{task}/{FOLDER}"
        for name in self._store.entries(folder):
            if (match := _FILE.fullmatch(name)) and match[1] not in used:
                self._store.remove(f"{folder}/{name}")
        if self._store.entry(folder) is not None and not self._store.entries(folder):
            self._store.remove(folder)


def _named_in(provenance: Mapping[str, Any]) -> tuple[str, int] | None:
    """The hash, and how many of the lines were learned from; provenance is anyone's, and may say anything."""
    said = provenance.get(PROVENANCE)
    sha256, num_train = (said.get("sha256"), said.get("num_train")) if isinstance(said, Mapping) else (None, None)
    is_hash = isinstance(sha256, str) and _FILE.fullmatch(f"{sha256}.jsonl")
    return (str(sha256), num_train) if is_hash and isinstance(num_train, int) and num_train >= 0 else None


def _key(task: str, sha256: str) -> str:
    return f"{task}/{FOLDER}/{sha256}.jsonl"
