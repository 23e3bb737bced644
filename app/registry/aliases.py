"""AliasTable: the content of `<task>/aliases.json`, the only file of a task that is rewritten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from app.errors import CorruptPrompt, InvalidInput
from app.registry.formats.json_file import Sha256, describe_fault, is_sealed, refuse_newer_schema, seal, unseal

# A version's number, or two versions' numbers with each one's share of the requests.
AliasTarget: TypeAlias = int | dict[int, float]
ALIASES_FILE = "aliases.json"
MAX_ALIASES = 64


@dataclass(frozen=True, slots=True)
class Gate:
    """What keeps an alias from moving to a version that scores lower than the one it means now.

    Attributes:
        data_sha256: of the examples that versions are compared on; the task keeps them under this name.
        metric: of an evaluation; more of it must be better.
        tolerance: how much lower a version may score, 0 to 1.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    data_sha256: Sha256
    metric: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")]
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class AliasTable:
    """Movable names of a task's versions.

    Attributes:
        revision: rises with every change, so that no state of a task looks like an earlier one.
        last_number: the highest number ever given to a version; no number is used twice.
        aliases: name to version, or to two versions with weights.
        deleting: versions whose deletion is decided; their folders are removed next, even after a crash.
        gates: alias to what a version must score before the alias moves to it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    revision: int = 0
    last_number: int = 0
    aliases: dict[str, AliasTarget] = field(default_factory=dict)
    deleting: tuple[int, ...] = ()
    gates: dict[str, Gate] = field(default_factory=dict)

    @classmethod
    def decode(cls, content: bytes) -> AliasTable:
        """Raises CorruptPrompt. A person may write the file by hand, and then leaves out the checksum."""
        refuse_newer_schema(content)
        try:
            table = _ADAPTER.validate_json(unseal(content) if is_sealed(content) else content)
        except ValidationError as error:
            raise CorruptPrompt(f"aliases.json cannot be read: {describe_fault(error)[1]}") from error
        if any(isinstance(target, dict) and not _is_weighted_pair(target) for target in table.aliases.values()):
            raise CorruptPrompt("aliases.json cannot be read: weights must be positive and name two versions")
        return table

    def encode(self) -> bytes:
        return seal(asdict(self))

    def changed(self, **changes: Any) -> AliasTable:
        return replace(self, revision=self.revision + 1, **changes)

    def with_alias(self, alias: str, target: AliasTarget, gate: Gate | None = None) -> AliasTable:
        """Args: gate: replaces the alias's gate; None keeps the one it has."""
        if alias not in self.aliases and len(self.aliases) >= MAX_ALIASES:
            raise InvalidInput(f"a task has at most {MAX_ALIASES} aliases", param="alias")
        gates = self.gates if gate is None else {**self.gates, alias: gate}
        return self.changed(aliases={**self.aliases, alias: target}, gates=gates)

    def without_alias(self, alias: str) -> AliasTable:
        return self.changed(
            aliases={name: target for name, target in self.aliases.items() if name != alias},
            gates={name: gate for name, gate in self.gates.items() if name != alias},
        )

    def without_gate(self, alias: str) -> AliasTable:
        return self.changed(gates={name: gate for name, gate in self.gates.items() if name != alias})

    def aliases_of(self, number: int) -> list[str]:
        """The aliases that name a version, alone or with another."""
        return [alias for alias, target in self.aliases.items() if number in numbers_of(target)]


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


def require_target(target: int | Mapping[int, float]) -> AliasTarget:
    """A checked copy. Raises InvalidInput."""
    if not isinstance(target, Mapping):
        return target
    weights = {int(number): float(weight) for number, weight in target.items()}
    if not _is_weighted_pair(weights):
        raise InvalidInput("weights must be positive, finite and name exactly two versions", param="weights")
    return weights


def _is_weighted_pair(weights: Mapping[int, float]) -> bool:
    return len(weights) == 2 and all(math.isfinite(weight) and weight > 0 for weight in weights.values())


_ADAPTER: TypeAdapter[AliasTable] = TypeAdapter(AliasTable)
