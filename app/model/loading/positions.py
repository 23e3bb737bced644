"""How many positions a checkpoint has, as far as its config.json or its header says so before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from app.errors import InvalidInput

CONFIG_FILE: Final = "config.json"
NAMES: Final = ("max_position_embeddings", "n_positions")


def declared_positions(path: Path | None) -> int | None:
    """None: it does not say, or is not here. Args: path: of a folder or a .gguf file."""
    if path is None or not path.exists():
        return None
    if path.is_file():
        from app.model.loading.gguf.file import GgufFile

        return GgufFile.read(path).about_model("context_length")
    try:
        config = json.loads((path / CONFIG_FILE).read_bytes())
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
