"""AliasTable: the content of `<task>/aliases.json`, the only file of a task that is rewritten.

A version is made for one backbone, so an alias has a target on each backbone that the task has versions for:

    "aliases": {"live": {"<fingerprint>": 3, "<another's>": {"4": 0.9, "5": 0.1}}}

Whoever writes for one backbone leaves what the others' names mean as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from app.errors import CorruptPrompt, InvalidInput
from app.registry.formats.json_file import Sha256, describe_fault, is_sealed, refuse_newer_schema, seal, unseal

# A version's number, or two versions' numbers with each one's share of the requests.
AliasTarget: TypeAlias = int | dict[int, float]
ALIASES_FILE = "aliases.json"
ALIASES_SCHEMA = 2
"""1 had one target and one gate for each alias, of whatever backbone the target's versions were made for."""
MAX_ALIASES = 64
TOLERANCE = 1e-6
"""Of the sum of two shares, which are rounded when they are written as decimals."""
_Said = TypeVar("_Said")
UNKNOWN = ""
"""Takes the place of a fingerprint for a target whose versions are not there, or damaged."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Gate:
    """What keeps an alias from moving to a version that scores lower than the one it means now.

    Attributes:
        data_sha256: of the examples that versions are compared on; the task keeps them under this name.
        metric: of an evaluation; more of it must be better.
        tolerance: how much lower a version may score, 0 to 1.
    """

    __pydantic_config__ = _STRICT

    data_sha256: Sha256
    metric: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")]
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class AliasTable:
    """Movable names of a task's versions. A backbone is in it by its fingerprint.

    Attributes:
        revision: rises with every change, so that no state of a task looks like an earlier one.
        last_number: the highest number ever given to a version; no number is used twice.
        aliases: name to backbone to version, or to two versions with weights.
        deleting: versions whose deletion is decided; their folders are removed next, even after a crash.
        gates: alias to backbone to what a version must score before the alias moves to it.
    """

    revision: int = 0
    last_number: int = 0
    aliases: dict[str, dict[str, AliasTarget]] = field(default_factory=dict)
    deleting: tuple[int, ...] = ()
    gates: dict[str, dict[str, Gate]] = field(default_factory=dict)

    @classmethod
    def decode(cls, content: bytes, number_to_backbone: Mapping[int, str]) -> AliasTable:
        """Read a file of this schema or an earlier one. A person may write it by hand, and leaves out the checksum.

        Args: number_to_backbone: fingerprints of the versions that can be read. They decide whose a target is,
            whatever the file says.

        Raises CorruptPrompt.
        """
        refuse_newer_schema(content, ALIASES_SCHEMA)
        try:
            said = _ADAPTER.validate_json(unseal(content) if is_sealed(content) else content)
        except ValidationError as error:
            raise CorruptPrompt(f"aliases.json cannot be read: {describe_fault(error)[1]}") from error
        aliases = {alias: _place(entry, number_to_backbone) for alias, entry in said.aliases.items()}
        gates = {
            alias: dict.fromkeys(aliases.get(alias, {UNKNOWN: 0}), gate) if isinstance(gate, Gate) else gate
            for alias, gate in said.gates.items()
        }
        return cls(said.revision, said.last_number, aliases, said.deleting, gates)

    @classmethod
    def of_newest(cls, alias: str, number_to_backbone: Mapping[int, str]) -> AliasTable:
        """On each backbone, the alias means the newest of these versions."""
        newest: dict[str, AliasTarget] = {number_to_backbone[number]: number for number in sorted(number_to_backbone)}
        return cls(aliases={alias: newest} if newest else {})

    def encode(self) -> bytes:
        return seal({"schema_version": ALIASES_SCHEMA, **asdict(self)})

    def changed(self, **changes: Any) -> AliasTable:
        return replace(self, revision=self.revision + 1, **changes)

    def target(self, alias: str, backbone: str) -> AliasTarget | None:
        """What the alias means on a backbone; None if it means nothing there."""
        return of_backbone(self.aliases.get(alias, {}), backbone)

    def gate(self, alias: str, backbone: str) -> Gate | None:
        return of_backbone(self.gates.get(alias, {}), backbone)

    def aliases_on(self, backbone: str) -> dict[str, AliasTarget]:
        """What each alias that means something on a backbone means there."""
        found = {alias: of_backbone(entry, backbone) for alias, entry in self.aliases.items()}
        return {alias: target for alias, target in found.items() if target is not None}

    def gates_on(self, backbone: str) -> dict[str, Gate]:
        found = {alias: of_backbone(entry, backbone) for alias, entry in self.gates.items()}
        return {alias: gate for alias, gate in found.items() if gate is not None}

    def with_alias(self, alias: str, backbone: str, target: AliasTarget, gate: Gate | None = None) -> AliasTable:
        """Args: gate: replaces the alias's gate on this backbone; None keeps the one it has."""
        on_backbone = self.aliases_on(backbone)
        if alias not in on_backbone and len(on_backbone) >= MAX_ALIASES:
            raise InvalidInput(f"a task has at most {MAX_ALIASES} aliases", param="alias")
        aliases = {**self.aliases, alias: {**self.aliases.get(alias, {}), backbone: target}}
        gates = self.gates if gate is None else {**self.gates, alias: {**self.gates.get(alias, {}), backbone: gate}}
        return self.changed(aliases=aliases, gates=gates)

    def without_alias(self, alias: str, backbone: str | None) -> AliasTable:
        """With its gate. Args: backbone: where; None: on every one."""
        return self.changed(
            aliases=_without(self.aliases, alias, backbone), gates=_without(self.gates, alias, backbone)
        )

    def without_gate(self, alias: str, backbone: str | None) -> AliasTable:
        """Args: as of `without_alias`."""
        return self.changed(gates=_without(self.gates, alias, backbone))

    def without_backbone(self, backbone: str) -> AliasTable:
        """No alias means anything there."""
        aliases, gates = self.aliases, self.gates
        for alias in [alias for alias, entry in aliases.items() if backbone in entry]:
            aliases, gates = _without(aliases, alias, backbone), _without(gates, alias, backbone)
        return self.changed(aliases=aliases, gates=gates)

    def aliases_of(self, number: int) -> list[str]:
        """The aliases that name a version on some backbone, alone or with another."""
        return [
            alias
            for alias, entry in self.aliases.items()
            if any(number in numbers_of(target) for target in entry.values())
        ]

    @property
    def numbers(self) -> set[int]:
        """Of the versions that aliases name, whether they exist or not."""
        targets = (target for entry in self.aliases.values() for target in entry.values())
        return {number for target in targets for number in numbers_of(target)}


def numbers_of(target: AliasTarget) -> tuple[int, ...]:
    return tuple(target) if isinstance(target, dict) else (target,)


def main_number(target: AliasTarget) -> int:
    """Of two versions the one with more weight."""
    return max(target, key=lambda number: target[number]) if isinstance(target, dict) else target


def numbers_to_compare(before: AliasTarget | None, after: AliasTarget) -> tuple[int, ...]:
    """What a gate needs the scores of when an alias moves: of the version it means now, then of those it is to mean.

    Empty if there is nothing to compare: a new alias, or one that stays put.
    """
    if before is None:
        return ()
    baseline = main_number(before)
    candidates = [number for number in numbers_of(after) if number != baseline]
    return (baseline, *candidates) if candidates else ()


def of_backbone(entry: Mapping[str, _Said], backbone: str) -> _Said | None:
    """What an alias's or gate's entry says of a backbone; what it says of an unknown one may be that."""
    return entry.get(backbone, entry.get(UNKNOWN))


def require_target(target: int | Mapping[int, float]) -> AliasTarget:
    """A checked copy. Tables of earlier versions may hold weights with another sum. Raises InvalidInput."""
    if not isinstance(target, Mapping):
        return target
    weights = {int(number): float(weight) for number, weight in target.items()}
    if not _is_weighted_pair(weights):
        raise InvalidInput("weights must be positive, finite and name exactly two versions", param="weights")
    if abs(sum(weights.values()) - 1) > TOLERANCE:
        raise InvalidInput(
            "weights are shares of the requests and must add up to 1, such as 0.9 and 0.1", param="weights"
        )
    return weights


def _is_weighted_pair(weights: Mapping[int, float]) -> bool:
    return len(weights) == 2 and all(math.isfinite(weight) and weight > 0 for weight in weights.values())


_Backbone: TypeAlias = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
_Number: TypeAlias = Annotated[int, Field(le=999_999_999)]
_SaidTarget: TypeAlias = _Number | dict[_Number, float]


@dataclass(frozen=True, slots=True)
class _AliasFile:
    """The file as it is written: of each schema that there ever was, or by hand."""

    __pydantic_config__ = _STRICT

    schema_version: Annotated[int, Field(ge=1, le=ALIASES_SCHEMA)] = 1
    revision: int = 0
    last_number: int = 0
    aliases: dict[str, _SaidTarget | dict[_Backbone, _SaidTarget]] = field(default_factory=dict)
    deleting: tuple[int, ...] = ()
    gates: dict[str, Gate | dict[_Backbone, Gate]] = field(default_factory=dict)


_ADAPTER: TypeAdapter[_AliasFile] = TypeAdapter(_AliasFile)


def _place(
    entry: _SaidTarget | dict[str, _SaidTarget], number_to_backbone: Mapping[int, str]
) -> dict[str, AliasTarget]:
    """An alias's targets by the backbones their versions were made for.

    A version that cannot be read belongs to the backbone that the file says, or else to that of the version it shares
    requests with, or else to the task's only one. Where two targets meet on a backbone, the one that said so counts.
    """
    said_to_target = _by_backbone(entry)
    known = {*number_to_backbone.values(), *said_to_target} - {UNKNOWN}
    only = known.pop() if len(known) == 1 else UNKNOWN
    placed: dict[str, AliasTarget] = {}
    for said, target in said_to_target.items():
        numbers = numbers_of(target)
        partners = [number_to_backbone[number] for number in numbers if number in number_to_backbone]
        unread = said or next(iter(partners), only)
        for backbone in dict.fromkeys(number_to_backbone.get(number, unread) for number in numbers):
            here = [number for number in numbers if number_to_backbone.get(number, unread) == backbone]
            if backbone == said or backbone not in placed:
                placed[backbone] = target if len(here) == len(numbers) else here[0]
    return placed


def _by_backbone(entry: _SaidTarget | dict[str, _SaidTarget]) -> dict[str, _SaidTarget]:
    """Raises CorruptPrompt: impossible weights."""
    is_target = isinstance(entry, int) or all(isinstance(key, int) for key in entry)
    by_backbone: dict[str, _SaidTarget] = {UNKNOWN: entry} if is_target else entry  # type: ignore[dict-item,assignment]
    if any(isinstance(target, dict) and not _is_weighted_pair(target) for target in by_backbone.values()):
        raise CorruptPrompt("aliases.json cannot be read: weights must be positive and name two versions")
    return by_backbone


def _without(name_to_entry: Mapping[str, Mapping[str, _Said]], name: str, backbone: str | None) -> dict[str, Any]:
    kept = dict(name_to_entry.get(name, {})) if backbone is not None else {}
    if backbone is not None:
        kept.pop(backbone if backbone in kept else UNKNOWN, None)
    changed = {**name_to_entry, name: kept}
    return {each: entry for each, entry in changed.items() if entry}
