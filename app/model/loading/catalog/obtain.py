"""obtain_model: the model that a command is to load, here or fetched."""

from __future__ import annotations

import logging
from pathlib import Path

from app.errors import ModelUnavailable
from app.model.loading.catalog.pull import PullView, pull
from app.model.loading.hub import fetch_from_hub
from app.model.loading.source import find_model
from app.settings import DEFAULT_MODEL, FALLBACK_MODEL

logger = logging.getLogger(__name__)


def obtain_model(
    model: str | None,
    cache: Path,
    view: PullView,
    *,
    revision: str | None = None,
    default: str = DEFAULT_MODEL,
    may_fall_back: bool = True,
) -> str:
    """The model by the name it was given, after fetching it if it is not here.

    Args:
        model: None takes the default one.
        revision: of a hub repository.
        may_fall_back: whether the model that comes with softswap may take the default one's place if that cannot be
            fetched now.

    Raises:
        InvalidInput: there is no such model, or the hub does not give it.
        UnsupportedModel: a .gguf file that cannot be served.
        ModelUnavailable: the model cannot be fetched and nothing may take its place.
    """
    name = default if model is None else model
    found = find_model(name, cache)
    if found.path is None:
        fetch_from_hub(name, revision)
    if found.entry is None or not found.must_be_pulled:
        return name
    try:
        pull(found.entry, cache, view)
    except ModelUnavailable as error:
        if model is not None or not may_fall_back:
            raise
        logger.warning("%s serves in place of %s until a start can fetch it: %s", FALLBACK_MODEL, name, error.message)
        return FALLBACK_MODEL
    return name
