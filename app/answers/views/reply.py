"""Reply: the base class of every JSON document that is shown to a caller."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Over HTTP, or printed with --json."""

    model_config = ConfigDict(extra="forbid")
