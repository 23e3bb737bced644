"""fetch_from_hub: a repository of the Hugging Face hub, through the hub's own cache, and without torch."""

from __future__ import annotations

from pathlib import Path

from app.errors import InvalidInput, first_line

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def fetch_from_hub(repository: str, revision: str | None) -> Path:
    """The local directory of a checkpoint of the hub, fetched unless the hub's cache has it. Raises InvalidInput."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InvalidInput(
            f"{repository} is neither a directory nor a reachable hub repository ({first_line(error)})", param="model"
        ) from error
