"""TaskView: what a task's names mean on one backbone, and what the task has for others.

Versions of all backbones share a task's numbers. On a backbone a name means that backbone's version or nothing; where
it means nothing, the error says what there is instead, and for which backbone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from app.errors import CorruptPrompt, InvalidInput, NotFound
from app.registry.aliases import AliasTarget, Gate, main_number, numbers_of
from app.registry.formats.manifest import BackboneName, tell_apart
from app.registry.reference import LIVE, Reference
from app.registry.task_record import TaskRecord
from app.registry.version import Version

NUM_SUGGESTED = 3
"""Versions that a refusal names."""


@dataclass(frozen=True, slots=True)
class BackboneView:
    """What a task has for one backbone.

    Attributes:
        name: for people: with digits of the fingerprint if two backbones of the task are called the same.
        aliases, gates: what they mean there.
        live: what the bare name means there, of two versions the one with more weight; None if no alias says.
    """

    fingerprint: str
    name: str
    num_versions: int
    aliases: Mapping[str, AliasTarget]
    gates: Mapping[str, Gate]
    live: Version | None


class TaskView:
    """A task as it was last read.

    Args:
        own: the backbone that looks at it; None for all of them, and then a name that means versions of several is
            refused as ambiguous.
    """

    def __init__(self, record: TaskRecord, own: BackboneName | None) -> None:
        self._record = record
        self._own = own

    @property
    def task(self) -> str:
        return self._record.task

    @property
    def etag(self) -> str:
        """For `if_match`; changes with every version and alias of any backbone that comes, goes or moves."""
        return self._record.etag

    @property
    def versions(self) -> Mapping[int, Version]:
        """Number to version, ascending, of every backbone."""
        return self._record.versions

    @property
    def own_versions(self) -> dict[int, Version]:
        """Those that can be used here."""
        return {number: version for number, version in self.versions.items() if self._is_own(version)}

    @cached_property
    def backbones(self) -> list[BackboneView]:
        """In the order of their first versions."""
        table = self._record.table
        found = []
        for fingerprint, count in Counter(each.backbone_fingerprint for each in self.versions.values()).items():
            aliases, gates = table.aliases_on(fingerprint), table.gates_on(fingerprint)
            live = aliases.get(LIVE)
            version = None if live is None else self.versions.get(main_number(live))
            found.append(BackboneView(fingerprint, self._names[fingerprint], count, aliases, gates, version))
        return found

    @property
    def here(self) -> BackboneView | None:
        """What it has for the backbone that looks, or for the only one; None if there is no such."""
        if self._own is not None:
            return next((each for each in self.backbones if each.fingerprint == self._own.fingerprint), None)
        return self.backbones[0] if len(self.backbones) == 1 else None

    @property
    def live(self) -> Version | None:
        """What the bare name means here, of two versions the one with more weight; None if no alias says."""
        return None if self.here is None else self.here.live

    @property
    def aliases(self) -> Mapping[str, AliasTarget]:
        """Here."""
        return {} if self.here is None else self.here.aliases

    @property
    def gates(self) -> Mapping[str, Gate]:
        """Here."""
        return {} if self.here is None else self.here.gates

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here and what to do, if it has versions for other backbones only."""
        if self._own is None or self.own_versions or not self.versions:
            return None
        others = ", ".join(each.name for each in self.backbones)
        own = self._names[self._own.fingerprint]
        return f"no version for {own}; it has versions for {others}; make one with {self._remedy}"

    def find(self, reference: Reference, rng: random.Random | None) -> Version:
        """Args: rng: chooses if an alias is weighted.

        Raises:
            NotFound: no such version or alias here.
            InvalidInput: the alias means versions of several backbones, and none of them is looking.
            CorruptPrompt: there is one, but it cannot be served.
        """
        if reference.digest is not None:
            return self._with_digest(reference.digest)
        if reference.number is not None:
            return self.numbered(reference.number)
        target = self._target(reference.alias or LIVE)
        if isinstance(target, dict):
            [target] = (rng or random).choices(list(target), weights=list(target.values()))
        return self.numbered(target)

    def numbered(self, number: int) -> Version:
        """Raises as `find` does."""
        return self._require_own(self._record.numbered(number))

    def of_target(self, target: AliasTarget) -> BackboneView:
        """What the task has for the backbone that an alias's versions are for.

        Raises:
            NotFound, CorruptPrompt: as `find`.
            InvalidInput: they are for several.
        """
        fingerprints = {self.numbered(number).backbone_fingerprint for number in numbers_of(target)}
        if len(fingerprints) > 1:
            raise InvalidInput("weights must name two versions for the same backbone", param="weights")
        return next(each for each in self.backbones if each.fingerprint in fingerprints)

    def advice_to_free(self, number: int) -> str:
        """How a version that an alias names can be deleted."""
        backbone = self.versions[number].backbone_fingerprint if number in self.versions else None
        alike = [each for each in self.versions.values() if each.backbone_fingerprint == backbone]
        if len(alike) > 1 or (backbone is None and self.versions):
            return "move it first"
        is_shared = self._own is None and len(self.backbones) > 1
        return "delete the alias first" if is_shared else "delete the task instead"

    def _target(self, alias: str) -> AliasTarget:
        table, fault = self._record.table, self._record.table_fault
        entry = table.aliases.get(alias, {})
        if self._own is not None:
            target = table.target(alias, self._own.fingerprint)
        elif len(entry) > 1:
            means = [f"{self.task}@{main_number(target)} for {self._names[key]}" for key, target in entry.items()]
            raise InvalidInput(
                f"{self.task}@{alias} means {' and '.join(means)}; name one of these versions", param="version"
            )
        else:
            target = next(iter(entry.values()), None)
        if target is None and fault is not None:
            raise CorruptPrompt(f"the aliases of task {self.task} cannot be read: {fault}")
        if target is None:
            raise self._no_alias(alias)
        return target

    def _no_alias(self, alias: str) -> NotFound:
        if self.missing is not None:
            return NotFound(f"task {self.task} has {self.missing}", param="task")
        others = [each.name for each in self.backbones if alias in each.aliases]
        elsewhere = f" here, only for {', '.join(others)}" if others else ""
        newest = max(self.own_versions, default=1)
        return NotFound(
            f"task {self.task} has no alias {alias}{elsewhere}; pin a version as {self.task}@{newest}", param="alias"
        )

    def _with_digest(self, digits: str) -> Version:
        found = {version.digest: version for version in self.versions.values() if version.digest.startswith(digits)}
        if len(found) > 1:
            raise NotFound("more than one version has a digest that begins so; give more digits", param="version")
        if not found:
            raise NotFound(f"task {self.task} has no version with this digest", param="version")
        return self._require_own(next(iter(found.values())))

    def _is_own(self, version: Version) -> bool:
        return self._own is None or version.backbone_fingerprint == self._own.fingerprint

    def _require_own(self, version: Version) -> Version:
        """Raises NotFound: it was made for another backbone."""
        if self._is_own(version):
            return version
        assert self._own is not None
        other, own = self._names[version.backbone_fingerprint], self._names[self._own.fingerprint]
        numbers = ", ".join(f"{self.task}@{number}" for number in list(self.own_versions)[-NUM_SUGGESTED:])
        remedy = f"for that there is {numbers}" if numbers else f"make one with {self._remedy}"
        raise NotFound(f"{version.id} was made for {other}, not for {own}; {remedy}", param="version")

    @property
    def _remedy(self) -> str:
        assert self._own is not None
        return f"`softswap retune {self.task} --model {self._own.name}`"

    @cached_property
    def _names(self) -> dict[str, str]:
        """Fingerprint to name, of all backbones that can be spoken of."""
        said = {version.backbone_fingerprint: version.backbone_name for version in self.versions.values()}
        said |= {} if self._own is None else {self._own.fingerprint: self._own.name}
        unread = {key: "" for entry in self._record.table.aliases.values() for key in entry}
        return tell_apart(unread | said)
