"""Reply: the base class of every JSON document that is shown to a caller."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Over HTTP, or printed with --json."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    @classmethod
    def fields_of(cls, source: object) -> dict[str, Any]:
        """Its fields that `source` has under the same names."""
        return {name: getattr(source, name) for name in cls.model_fields if hasattr(source, name)}

    @classmethod
    def given_in(cls, source: object) -> dict[str, Any]:
        """As `fields_of`, but for those that are None or empty."""
        return {name: value for name, value in cls.fields_of(source).items() if value not in (None, (), {})}
