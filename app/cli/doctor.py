"""`softswap doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from app.cli import options
from app.errors import SoftswapError
from app.settings import DEFAULT_MODEL, Settings

if TYPE_CHECKING:
    from app.model.backbone import Backbone

MIN_FREE_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    """Attributes: is_fine: False makes the command fail. advice: what to do if it is not fine."""

    name: str
    is_fine: bool
    fact: str
    advice: str = ""


@options.takes_settings("model", "registry", "device", "quantize", "host", "port")
def doctor(*, as_json: options.AsJson = False, settings: Settings) -> None:
    """Check what `serve` needs: packages, device, memory, address, backbone, kernels, the digest of every version.

    Exit code 1 if something is wrong.
    """
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        options.write(asdict(finding), _print, as_json=as_json)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """The findings, cheap checks first."""
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version(), "softswap needs Python 3.11")
    yield from _packages()
    yield _try("device", lambda: _device(settings))
    yield _memory()
    yield _try("threads", _threads)
    yield _try("address", lambda: _address(settings))
    yield _try("keys", lambda: _keys(settings))
    loaded: list[Backbone] = []
    yield _try("backbone", lambda: _backbone(settings, loaded))
    if loaded:
        yield from _kernels(settings, loaded[0])
    yield _try("registry", lambda: _registry(settings, loaded[0] if loaded else None))


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except SoftswapError as error:
        return Finding(name, False, error.message)


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("torch", "transformers", "safetensors", "fastapi", "uvicorn"):
        try:
            yield Finding(name, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, "not installed", f"pip install {name}")


def _device(settings: Settings) -> str:
    import torch

    from app.model.backbone import choose_device

    device = choose_device(settings.device)
    if device.type != "cuda":
        return f"{device} ({platform.machine()})"
    free, total = torch.cuda.mem_get_info(device)
    return f"{device}: {torch.cuda.get_device_name(device)}, {_size(free)} of {_size(total)} free"


def _memory() -> Finding:
    is_said = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {})  # macOS does not say
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if is_said else 0
    disk = shutil.disk_usage(".").free
    is_fine = free == 0 or free >= MIN_FREE_BYTES
    room = f"{_size(free)} free, " if is_said else ""
    return Finding("memory", is_fine, f"{room}{_size(disk)} on disk", "free some memory")


def _threads() -> str:
    import torch

    from app.model.threads import usable_cores

    return f"{torch.get_num_threads()} compute; {usable_cores()} of {os.cpu_count()} cores are usable"


def _address(settings: Settings) -> str:
    from app.address import bind

    bind(settings.host, settings.port).close()
    return f"{settings.host}:{settings.port} is free"


def _keys(settings: Settings) -> str:
    keys = settings.read_api_keys()
    return f"{len(keys)} API keys" if keys else "no API keys; only this machine can reach the server"


def _backbone(settings: Settings, loaded: list[Backbone]) -> str:
    from app.model.loading.source import find_model

    found = find_model(settings.model or DEFAULT_MODEL, settings.cache_folder)
    if found.must_be_pulled:
        return f"{found.name} is not here yet; the first start, or `softswap pull {found.name}`, fetches it"
    from app.main import load_backbone

    backbone = load_backbone(settings)
    loaded.append(backbone)
    num_parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    num_bytes = sum(parameter.nbytes for parameter in backbone.model.parameters())
    quantized = "" if backbone.quantize == "none" else f" with weights in {backbone.quantize}"
    return (
        f"{backbone.name}: {num_parameters / 1e6:.1f} M parameters in {num_bytes / 1e6:.0f} MB, "
        f"{backbone.max_model_len} positions, {backbone.dtype}{quantized}, fingerprint {backbone.fingerprint[:12]}"
    )


def _kernels(settings: Settings, backbone: Backbone) -> Iterator[Finding]:
    from app.model.attention import attend_sdpa
    from app.model.kernels import kernels_for

    kernels, shape = kernels_for(backbone.device), backbone.kv_shape
    is_told = settings.attention == "sdpa"
    attend, reason = (attend_sdpa, "as told") if is_told else kernels.choose_attend(backbone.dtype, shape.head_dim)
    yield Finding("attention", True, f"{attend.__name__} ({reason})")
    layers = "torch's own (as told)"
    if settings.layers != "torch":
        layers = kernels.choose_replacements(backbone.model, shape, attend)[1]
    yield Finding("layers", True, layers)


def _registry(settings: Settings, backbone: Backbone | None) -> str:
    """Reads every version and checks its digest."""
    from app.errors import BackboneMismatch, CorruptPrompt, NotFound
    from app.registry.registry import Registry
    from app.registry.store import FileStore

    if settings.registry is not None and not settings.registry.is_dir():
        raise NotFound(f"there is no folder {settings.registry}")
    store = FileStore(settings.registry_folder, settings.tasks_below)
    registry = Registry(store, backbone, max_positions=settings.max_model_len, max_cache_bytes=0)
    faults = registry.faults()
    versions = [version for summary in registry.tasks() for version in registry.versions(summary.task)]
    num_foreign = 0
    for version in versions:
        try:
            registry.prompt(version)
            registry.initial(version)
        except BackboneMismatch:
            num_foreign += 1
        except SoftswapError as error:
            faults.setdefault(f"{version.task}/{version.number}", error.message)
    if faults:
        raise CorruptPrompt("; ".join(f"{place}: {reason}" for place, reason in faults.items()))
    foreign = f", {num_foreign} for another backbone" if num_foreign else ""
    place = f"{settings.registry_folder}{' and the demo tasks' if settings.tasks_below else ''}"
    return f"{place}: {len(registry.tasks())} tasks, {len(versions)} versions, all digests correct{foreign}"


def _print(finding: dict[str, Any]) -> None:
    mark = typer.style("ok ", fg="green") if finding["is_fine"] else typer.style("no ", fg="red")
    advice = f" ({finding['advice']})" if finding["advice"] and not finding["is_fine"] else ""
    typer.echo(f"{mark} {finding['name']:<14}{finding['fact']}{advice}")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
