"""A model of a shape, saved once: what servers and peers in processes of their own load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.shapes import Shape


def cache_folder() -> Path:
    """Where models and the peers' environments are kept; `SOFTSWAP_BENCHMARK_CACHE` names another place."""
    given = os.environ.get("SOFTSWAP_BENCHMARK_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "softswap" / "benchmarks"


def saved_model(shape: Shape) -> Path:
    """The folder in Hugging Face layout, float32, made unless it is there; its weights are the shape's seed's."""
    folder = cache_folder() / "models" / shape.name
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=folder.parent))
    try:
        shape.build_model().save_pretrained(temporary)
        shape.build_tokenizer().save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder
