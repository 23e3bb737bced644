"""What changed between two prompts, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import BackboneMismatch, InvalidInput
from app.insight.groups import cosines
from app.task_prompt import TaskPrompt


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One row compared with the other prompt's.

    Attributes:
        distance: L2 to the row of the same index; None if the other prompt has none.
        cosine: of the angle between them; None likewise.
        nearest: index of the other prompt's row with the smallest angle.
        nearest_cosine: of that angle.
    """

    index: int
    distance: float | None
    cosine: float | None
    nearest: int
    nearest_cosine: float


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """Attributes: num_virtual_tokens: the other prompt's. is_same: whether both hold the same values."""

    num_virtual_tokens: int
    is_same: bool
    rows: tuple[RowDifference, ...]


def compare_prompts(prompt: TaskPrompt, other: TaskPrompt) -> PromptDifference:
    """Raises InvalidInput, BackboneMismatch: they cannot be compared."""
    if prompt.backbone_fingerprint != other.backbone_fingerprint:
        raise BackboneMismatch("the two prompts were made for different backbones", param="compare")
    if prompt.rows is None or other.rows is None or prompt.kind is not other.kind:
        raise InvalidInput(f"a prompt of kind {prompt.kind} cannot be compared with {other.kind}", param="compare")
    similarity = cosines(prompt.rows, other.rows)
    nearest = similarity.max(dim=1)
    common = min(len(prompt.rows), len(other.rows))
    distances = (prompt.rows[:common] - other.rows[:common]).norm(dim=1).tolist()
    return PromptDifference(
        other.num_virtual_tokens,
        prompt.digest == other.digest,
        tuple(
            RowDifference(
                index=i,
                distance=distances[i] if i < common else None,
                cosine=float(similarity[i, i]) if i < common else None,
                nearest=int(nearest.indices[i]),
                nearest_cosine=float(nearest.values[i]),
            )
            for i in range(len(prompt.rows))
        ),
    )
