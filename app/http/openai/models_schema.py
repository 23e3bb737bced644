"""`/v1/models`, as in openai `types/model.py`; `root`, `parent` and `max_model_len` as vLLM adds them."""

from __future__ import annotations

from typing import Literal

from app.answers.views.reply import Reply
from app.registry.version import Version


class Model(Reply):
    """Something a request's `model` can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["softswap"] = "softswap"
    root: str
    parent: str | None
    max_model_len: int

    @classmethod
    def of_backbone(cls, name: str, *, created: int, max_len: int) -> Model:
        return cls(id=name, created=created, root=name, parent=None, max_model_len=max_len)

    @classmethod
    def of_version(cls, name: str, version: Version, *, parent: str, max_len: int) -> Model:
        """Args: name: what the caller calls it; max_len: positions of the backbone."""
        return cls(
            id=name,
            created=version.created_at,
            root=version.id,
            parent=parent,
            max_model_len=max_len - version.num_virtual_tokens,
        )


class ModelDeleted(Reply):
    """As in openai `types/model_deleted.py`."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Reply):
    """The backbone, and every task under its bare name."""

    object: Literal["list"] = "list"
    data: list[Model]
