"""Patterns that texts in requests must match, and the words that a refusal shows instead of them."""

from __future__ import annotations

TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,62}$"
VERSION_PATTERN = r"^[1-9][0-9]{0,8}$"
VOCABULARY_ID_PATTERN = r"^[0-9]{1,9}$"

PATTERN_TO_WORDS = {
    TASK_PATTERN: "must have 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit",
    ALIAS_PATTERN: "must have 1 to 63 of a-z 0-9 . _ - and begin with a letter",
    VERSION_PATTERN: "must be a version's number, as a string",
    VOCABULARY_ID_PATTERN: "must be a token's id, as a string",
}
