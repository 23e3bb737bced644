"""Gate: what keeps an alias from moving to a version that scores lower than the one it means now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import ConfigDict, Field

from app.errors import GateFailed
from app.registry.formats.json_file import Sha256

ScoreOf: TypeAlias = Callable[[int], float | None]


@dataclass(frozen=True, slots=True)
class Gate:
    """Attributes:
    data_sha256: of the examples that versions are compared on; the task keeps them under this name.
    metric: of an evaluation; more of it must be better.
    tolerance: how much lower a version may score, 0 to 1.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    data_sha256: Sha256
    metric: Annotated[str, Field(pattern="^[a-z0-9_]{1,64}$")]
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which scores decide whether an alias may move.

    Attributes:
        baseline: the version the alias means now; of two, the one with more weight.
        candidates: the versions it is to mean instead, each of which must score as high.
    """

    baseline: int
    candidates: tuple[int, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The versions that need a score."""
        return (self.baseline, *self.candidates)

    def require(self, gate: Gate, score_of: ScoreOf) -> None:
        """Args: score_of: a version's value of the gate's metric on the gate's examples; None if it has none yet.

        Raises GateFailed.
        """
        standard = _score(gate, score_of, self.baseline)
        for number in self.candidates:
            score = _score(gate, score_of, number)
            if score < standard - gate.tolerance:
                raise GateFailed(
                    f"version {number} has {gate.metric} {score:.4f} on the gate's examples, and version "
                    f"{self.baseline}, which it would replace, {standard:.4f}; force moves the alias all the same",
                    param="version",
                )


def _score(gate: Gate, score_of: ScoreOf, number: int) -> float:
    score = score_of(number)
    if score is None:
        raise GateFailed(f"version {number} has no {gate.metric} on the gate's examples yet", param="version")
    return score
