"""TaskRecord: what the registry knows of one task; immutable, so that readers need no lock."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from app.errors import Conflict, CorruptPrompt, NotFound
from app.registry.aliases import AliasTable, AliasTarget, main_number, numbers_of
from app.registry.reference import LIVE, Reference
from app.registry.version import TaskSummary, Version

# Stands where a version's number would, for files that lie in the task's own folder.
OWN_FOLDER = 0


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task's folder as it was last read.

    Attributes:
        stamp: of the folder, taken before it was read; another one means that it must be read again.
        table: its aliases. Without an aliases.json the newest version is live.
        table_fault: why aliases.json cannot be read, None where it can or is missing.
        versions: number to version, ascending.
        faults: number to the reason why the version is not served.
        signatures: number to what its folder looked like when it was read, of faulty ones too.
    """

    name: str
    stamp: Hashable
    table: AliasTable
    table_fault: str | None
    versions: Mapping[int, Version]
    faults: Mapping[int, str]
    signatures: Mapping[int, Hashable]

    @classmethod
    def empty(cls, name: str) -> TaskRecord:
        """Of a task that has no folder yet."""
        return cls(name, None, AliasTable(), None, {}, {}, {})

    @property
    def numbers(self) -> set[int]:
        """Of the versions there are, those that cannot be served included."""
        return {*self.versions, *self.faults} - {OWN_FOLDER}

    @property
    def last_number(self) -> int:
        """The highest number that was ever given to a version of this task."""
        return max([self.table.last_number, *self.signatures])

    @property
    def is_settled(self) -> bool:
        """False while files may still be on their way in."""
        named = {number for target in self.table.aliases.values() for number in numbers_of(target)}
        return not self.faults and self.table_fault is None and named <= self.versions.keys()

    @property
    def etag(self) -> str:
        """Changes with every version and alias that comes, goes or moves."""
        versions = ",".join(f"{number}:{version.digest}" for number, version in self.versions.items())
        state = f"{self.table.revision}|{versions}|{sorted(self.table.aliases.items())}"
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    @property
    def summary(self) -> TaskSummary:
        target = self.table.aliases.get(LIVE)
        live = None if target is None else self.versions.get(main_number(target))
        return TaskSummary(self.name, live, len(self.versions), self.table.aliases, self.table.gates)

    def require_state(self, if_match: str | None) -> None:
        """Args: if_match: see `Catalog.writing`. Raises Conflict, CorruptPrompt."""
        if if_match is not None and (not self.numbers or if_match not in ("*", self.etag)):
            raise Conflict("the task changed since it was read; read it again", param="if_match")
        if self.table_fault is not None:
            raise CorruptPrompt(f"the aliases of task {self.name} cannot be read: {self.table_fault}")

    def require_versions(self) -> None:
        """Raises NotFound: none, so that there is no such task."""
        if not self.numbers:
            raise NotFound(f"there is no task {self.name}", param="task")

    def find(self, reference: Reference, rng: random.Random | None) -> Version:
        """Args: rng: chooses where an alias is weighted.

        Raises:
            NotFound: no such version or alias.
            CorruptPrompt: there is one, but it cannot be served.
        """
        if reference.digest is not None:
            return self._with_digest(reference.digest)
        if reference.number is not None:
            return self._numbered(reference.number)
        target = self.table.aliases.get(reference.alias or LIVE)
        if target is None and self.table_fault is not None:
            raise CorruptPrompt(f"the aliases of task {self.name} cannot be read: {self.table_fault}")
        if target is None:
            raise NotFound(
                f"task {self.name} has no alias {reference.alias}; pin a version as {self.name}@1", param="alias"
            )
        return self._numbered(_choose(target, rng))

    def _numbered(self, number: int) -> Version:
        if number in self.versions:
            return self.versions[number]
        if number in self.faults:
            raise CorruptPrompt(f"{self.name}@{number} cannot be served: {self.faults[number]}")
        raise NotFound(f"task {self.name} has no version {number}", param="version")

    def _with_digest(self, digits: str) -> Version:
        found = {version.digest: version for version in self.versions.values() if version.digest.startswith(digits)}
        if len(found) > 1:
            raise NotFound("more than one version has a digest that begins so; give more digits", param="version")
        if not found:
            raise NotFound(f"task {self.name} has no version with this digest", param="version")
        return next(iter(found.values()))


def _choose(target: AliasTarget, rng: random.Random | None) -> int:
    if not isinstance(target, dict):
        return target
    chosen: int = (rng or random).choices(list(target), weights=list(target.values()))[0]
    return chosen
