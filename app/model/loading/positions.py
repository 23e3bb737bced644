"""How many positions a checkpoint has, as far as its config.json says so before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from app.errors import InvalidInput

CONFIG_FILE: Final = "config.json"
NAMES: Final = ("max_position_embeddings", "n_positions")


def declared_positions(source: str) -> int | None:
    """Args: source: as `Backbone.load` takes it. None: not a folder, or one that does not say."""
    try:
        config = json.loads((Path(source) / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(config, Mapping):
        return None
    text_config = config.get("text_config")
    places: list[Mapping[str, Any]] = [text_config, config] if isinstance(text_config, Mapping) else [config]
    found = (place.get(name) for place in places for name in NAMES)
    return next((number for number in found if isinstance(number, int)), None)


def require_positions(max_model_len: int | None, num_positions: int | None, name: str) -> None:
    """Args: name: of the model. Raises InvalidInput: sequences would be longer than what the model was made for."""
    if max_model_len is not None and num_positions is not None and max_model_len > num_positions:
        raise InvalidInput(
            f"max_model_len must be at most {num_positions:,}, the positions of {name}", param="max_model_len"
        )
