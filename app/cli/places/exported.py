"""What a folder that `softswap tasks export` wrote, or a version's own, says of its backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from app.errors import BackboneMismatch
from app.model.loading.catalog.models import FINGERPRINT_TO_NAME

MANIFEST_FILE: Final = "task.json"
NUM_DIGITS: Final = 12


def made_for(path: Path) -> tuple[str, str] | None:
    """Fingerprint and name of the backbone that a checkpoint, or the folder it lies in, names; None if it names none.

    Files of other programs do not say it.
    """
    folder = path if path.is_dir() else path.parent
    try:
        said = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["backbone"]
        fingerprint, name = str(said["fingerprint"]), str(said["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return fingerprint, FINGERPRINT_TO_NAME.get(fingerprint, name) or fingerprint[:NUM_DIGITS]


def require_made_for(path: Path, fingerprint: str, name: str) -> None:
    """Args: fingerprint, name: of the backbone in use. Raises BackboneMismatch: the checkpoint names another one."""
    said = made_for(path)
    if said is not None and said[0] != fingerprint:
        raise BackboneMismatch(f"{path} was made for {said[1]} ({said[0][:NUM_DIGITS]}), not for {name}", param="path")
