"""`/v1/models`, as in openai `types/model.py`; `root`, `parent` and `max_model_len` as vLLM adds them."""

from __future__ import annotations

from typing import Literal

from app.http.fields import Reply


class Model(Reply):
    """Something a request's `model` can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["softswap"] = "softswap"
    root: str
    parent: str | None
    max_model_len: int


class ModelDeleted(Reply):
    """As in openai `types/model_deleted.py`."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Reply):
    """The backbone, and every task under its bare name."""

    object: Literal["list"] = "list"
    data: list[Model]
