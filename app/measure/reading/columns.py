"""Columns: which fields of a file's rows are the input and the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIELD_PAIRS: Final = (("input", "target"), ("text", "label"), ("prompt", "completion"))


@dataclass(frozen=True, slots=True)
class Columns:
    """Attributes: input, target: names of the fields, as the file has them."""

    input: str
    target: str


CHAT: Final = Columns("user", "assistant")
"""Of rows with OpenAI's `messages`: the roles."""
