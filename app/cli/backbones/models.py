"""`softswap models`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import typer

from app.cli import options
from app.cli.views.rows import print_rows
from app.settings import DEFAULT_MODEL, Settings

DTYPE_TO_BYTES = {"float32": 4, "bfloat16": 2}
LOADING = 1.3
"""Times the weights' size: what loading takes at most."""
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of classes that write texts, in a config.json."""
GPU = Path("/dev/nvidiactl")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class ListedModel:
    """Attributes:
    kind: "catalog", or "hub" for what lies in the hub's cache.
    path: where it lies, or will lie once it is pulled.
    num_bytes: of its files on disk; None while it is not here.
    memory_bytes: of its weights, by dtype.
    fits: whether there is room to load it on the device, by dtype.
    """

    name: str
    kind: str
    is_default: bool
    is_here: bool
    path: str
    num_bytes: int | None
    num_parameters: int
    memory_bytes: dict[str, int]
    fits: dict[str, bool]


@options.takes_settings("cache", "device")
def models(*, as_json: options.AsJson = False, settings: Settings) -> None:
    """List the models that have a name here: the catalog's, and those in the hub's cache.

    Weights take the memory that is shown once they are loaded, whatever they take on disk; keys and values come on
    top. A folder in Hugging Face's layout and a .gguf file need no name: --model takes their path.

        softswap models
        softswap serve --model smollm2-135m-instruct
    """
    memory_bytes, where = device_memory(settings.device)
    found = [*_list_catalog(settings.cache_folder, memory_bytes), *_list_hub(memory_bytes)]
    options.write([asdict(each) for each in found], print_models, as_json=as_json)
    if not as_json:
        typer.echo(f"fits: whether it can be loaded in {where}. * is served if none is named.")


def print_models(found: list[dict[str, Any]]) -> None:
    headings = ("model", "parameters", "here", "on disk", "in float32", "fits", "in bfloat16", "fits")
    print_rows(headings, map(_cells, found))


def _cells(model: dict[str, Any]) -> tuple[str, ...]:
    memory = [
        cell
        for dtype in DTYPE_TO_BYTES
        for cell in (_megabytes(model["memory_bytes"][dtype]), "yes" if model["fits"][dtype] else "no")
    ]
    name = model["name"] + (" *" if model["is_default"] else "")
    is_here = "yes" if model["is_here"] else "no"
    return name, f"{model['num_parameters'] / 1e6:.0f} M", is_here, _megabytes(model["num_bytes"]), *memory


def _megabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:,.0f} MB"


def _list_catalog(cache: Path, memory_bytes: int) -> Iterator[ListedModel]:
    from app.model.loading.catalog.models import MODELS

    for model in MODELS:
        path = model.path(cache)
        files = [path] if path.is_file() else sorted(path.glob("*"))
        num_bytes = sum(file.stat().st_size for file in files) if path.exists() else None
        yield _describe(model.name, "catalog", path, num_bytes, model.num_parameters, memory_bytes)


def _list_hub(memory_bytes: int) -> Iterator[ListedModel]:
    """What could be served of the hub's cache without a network."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        for revision in sorted(repository.revisions, key=lambda each: each.last_modified, reverse=True)[:1]:
            if repository.repo_type == "model" and (num_parameters := _count_parameters(revision.snapshot_path)):
                folder, num_bytes = revision.snapshot_path, revision.size_on_disk
                yield _describe(repository.repo_id, "hub", folder, num_bytes, num_parameters, memory_bytes)


def _count_parameters(folder: Path) -> int:
    """Of a language model in safetensors; 0 if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_bytes())
        if not any(name.endswith(CAUSAL) for name in config["architectures"]):
            return 0
        num_parameters = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                num_parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return 0
    return num_parameters


def _describe(
    name: str, kind: str, path: Path, num_bytes: int | None, num_parameters: int, memory_bytes: int
) -> ListedModel:
    needed = {dtype: num_parameters * size for dtype, size in DTYPE_TO_BYTES.items()}
    return ListedModel(
        name,
        kind,
        is_default=name == DEFAULT_MODEL,
        is_here=num_bytes is not None,
        path=str(path),
        num_bytes=num_bytes,
        num_parameters=num_parameters,
        memory_bytes=needed,
        fits={dtype: LOADING * size <= memory_bytes for dtype, size in needed.items()},
    )


def device_memory(device: str) -> tuple[int, str]:
    """Bytes that a model can be loaded into, and where they are. Raises InvalidInput."""
    if device == "cpu" or (device == "auto" and not GPU.exists()):
        num_bytes = machine_memory()
        return num_bytes, f"this machine's {num_bytes / 2**30:.1f} GiB"
    import torch

    from app.model.backbone import choose_device

    chosen = choose_device(device)
    if chosen.type != "cuda":
        return device_memory("cpu")
    num_bytes = torch.cuda.mem_get_info(chosen)[1]
    return num_bytes, f"the {num_bytes / 2**30:.1f} GiB of {torch.cuda.get_device_name(chosen)}"


def machine_memory() -> int:
    """What this process may use: the machine's, or its container's if that has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(limits)
