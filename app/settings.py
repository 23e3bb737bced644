"""Settings: the only reader of the environment. Every option of `softswap serve` is a field of Settings.

The docstring under a field is its description, which `--help` shows and docs/settings.md lists.
"""

from __future__ import annotations

import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import InvalidInput

APP_FOLDER = Path(__file__).parent
DEMO_BACKBONE = APP_FOLDER / "demo" / "backbone"
DEFAULT_MODEL = "demo"
"""Of the catalog (`app.model.loading.catalog`)."""
FALLBACK_MODEL = "demo"
"""Served while the default one cannot be fetched: it comes with softswap."""
MIN_KEY_CHARS = 16
KEEP_CHECKPOINTS, MAX_CHECKPOINTS = 5, 1000
"""Of one job."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def demo_tasks() -> Path:
    """Folder of the demo tasks: `prompts/` in a checkout, or the copy in an installed package."""
    checkout = APP_FOLDER.parent / "prompts"
    return checkout if checkout.is_dir() else APP_FOLDER / "demo" / "prompts"


def own_cache() -> Path:
    """Folder of pulled models if none is named. Raises InvalidInput: the user has no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softswap" / "models"
    except RuntimeError as error:
        raise InvalidInput("there is no home folder to keep models in; name one", param="cache") from error


def own_tasks() -> Path:
    """Folder of the user's tasks if no registry is named. Raises InvalidInput: the user has no home folder."""
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "softswap" / "prompts"
    except RuntimeError as error:
        raise InvalidInput("there is no home folder to keep tasks in; name one", param="registry") from error


class Panel(StrEnum):
    """Heading that `softswap serve --help` lists a setting under; one without a panel is under Options."""

    NETWORK = "Network"
    SIZES = "Sizes"
    OPERATION = "Operation"


class _EnvironmentSettings(BaseSettings):
    """Arguments win over the environment, and the environment wins over the defaults."""

    model_config = SettingsConfigDict(
        env_prefix="SOFTSWAP_", env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )  # fmt: skip


class Settings(_EnvironmentSettings):
    """What a server is started with."""

    model: str | None = Field(
        None,
        min_length=1,
        description="Backbone to serve: a name that `softswap models` lists, a folder in Hugging Face layout, a .gguf "
        f"file, or a hub id. (default: {DEFAULT_MODEL})",
    )
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    cache: Path | None = None
    """Folder of pulled models. (default: ~/.cache/softswap/models)"""
    registry: Path | None = None
    """Folder of the tasks. (default: the demo tasks, and yours in ~/.local/share/softswap/prompts)"""
    state: Path | None = None
    """Folder for uploads, tuning jobs and unfinished work. (default: .state in the registry)"""
    watch_interval: float = Field(2.0, ge=0, le=3600)
    """Seconds between checks for new or changed task folders; 0 turns them off."""
    host: Annotated[str, Panel.NETWORK] = Field("127.0.0.1", min_length=1)
    """Address to listen on. (default: 127.0.0.1)"""
    port: Annotated[int, Panel.NETWORK] = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one. (default: 8000)"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """float32, bfloat16, float16, or auto: the checkpoint's own on CUDA, float32 on a CPU."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads that compute on a CPU. (default: measured at startup, within the container's quota)"""
    quantize: Literal["none", "int8"] = "none"
    """none, or int8: weights of linear layers in one byte each, on a CPU only."""
    attention: Literal["auto", "sdpa"] = "auto"
    """auto takes the fastest that can run (on a CPU, C compiled at first use); sdpa is torch's own."""
    layers: Literal["auto", "torch"] = "auto"
    """auto takes C code on a CPU if it measures faster; torch is torch's own."""
    eager: bool = False
    """On CUDA, run without decode graphs and asynchronous scheduling; a CPU never uses either."""
    max_model_len: Annotated[int | None, Panel.SIZES] = Field(None, ge=8, le=2**24)
    """Longest sequence, virtual tokens included. (default: the model's own limit)"""
    max_num_seqs: Annotated[int | None, Panel.SIZES] = Field(None, ge=1, le=4096)
    """Sequences computed at a time."""
    max_num_batched_tokens: Annotated[int | None, Panel.SIZES] = Field(None, ge=16, le=1_048_576)
    """Tokens computed in a step."""
    block_size: Annotated[int | None, Panel.SIZES] = Field(None, ge=1, le=1024)
    """Tokens in a block of the cache; a multiple of 256 on CUDA."""
    kv_cache_memory: Annotated[ByteSize | None, Panel.SIZES] = Field(None, ge=2**16)
    """Bytes for keys and values, such as 2147483648, 512MiB or 4GB."""
    prefix_caching: Annotated[bool, Panel.SIZES] = True
    """Keep computed text for later requests with the same key that start alike, while there is room."""
    prefix_store: Annotated[Path | None, Panel.SIZES] = None
    """Folder for keys and values of task prompts that do not fit in memory. (default: none)"""
    prefix_store_size: Annotated[ByteSize, Panel.SIZES] = Field(ByteSize(10 * 2**30), ge=2**20)
    """Bytes of all files in that folder, such as 10GiB; the least recently used are dropped."""
    warm_prompts: Annotated[bool, Panel.SIZES] = True
    """While idle, compute prompts that were never asked for, if memory or the store has room."""
    prompt_lookup: Annotated[int, Panel.SIZES] = Field(0, ge=0, le=16)
    """Tokens to guess in a step when few requests run and texts repeat, such as 4; 0 guesses none."""
    max_waiting_requests: Annotated[int, Panel.SIZES] = Field(1024, ge=1, le=1_000_000)
    """Requests that may wait; any more are refused with 503."""
    max_waiting_tokens: Annotated[int | None, Panel.SIZES] = Field(None, ge=1)
    """Tokens of text that may wait; any more are refused with 503."""
    tuning_share: Annotated[float, Panel.OPERATION] = Field(0.2, ge=0, lt=1)
    """Share of the device's time that tuning gets while requests run; none under load."""
    keep_checkpoints: Annotated[int, Panel.OPERATION] = Field(KEEP_CHECKPOINTS, ge=1, le=MAX_CHECKPOINTS)
    """Checkpoints of a tuning job that stay: the newest, each of which is better than those before it."""
    request_timeout: Annotated[float, Panel.OPERATION] = Field(600.0, gt=0, le=3600)
    """Seconds that a request without X-Request-Timeout may take."""
    api_keys: Annotated[tuple[str, ...], NoDecode, Panel.NETWORK] = ()
    """Keys of 16 characters or more, separated by commas; every route asks for one. Safer in the environment."""
    api_keys_file: Annotated[Path | None, Panel.NETWORK] = None
    """File with more keys, one per line; lines that start with # are comments."""
    insecure: Annotated[bool, Panel.NETWORK] = False
    """Allow an address that other machines can reach without any key."""
    shutdown_timeout: Annotated[float, Panel.OPERATION] = Field(30.0, ge=0, le=3600)
    """Seconds that running requests get to finish when the server is asked to stop."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Panel.OPERATION] = "info"
    """Minimum log level: debug, info, warning or error."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _require_device(cls, value: str) -> str:
        if _DEVICE.fullmatch(value) is None:
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        """Raises InvalidInput: an option that would be left unused."""
        if self.quantize != "none" and self.device.startswith("cuda"):
            raise InvalidInput(f"--quantize must be none on {self.device}: int8 is for CPUs only", param="quantize")
        if "prefix_store_size" in self.model_fields_set and self.prefix_store is None:
            raise InvalidInput("--prefix-store-size belongs to --prefix-store", param="prefix_store_size")
        tokens = self.max_num_batched_tokens
        if tokens is not None and tokens < (self.max_num_seqs or 0):
            raise InvalidInput(
                "--max-num-batched-tokens must be at least --max-num-seqs: a step computes a token of every sequence",
                param="max_num_batched_tokens",
            )
        return self

    @property
    def cache_folder(self) -> Path:
        """Folder of pulled models."""
        return self.cache or own_cache()

    @property
    def registry_folder(self) -> Path:
        """Folder that tasks are written to."""
        return self.registry or own_tasks()

    @property
    def tasks_below(self) -> Path | None:
        """Folder to read tasks from that the registry's folder does not have; never written to."""
        return demo_tasks() if self.registry is None else None

    @property
    def state_folder(self) -> Path:
        return self.state or self.registry_folder / ".state"

    def read_api_keys(self) -> tuple[str, ...]:
        """Keys from both settings.

        Raises InvalidInput: the file cannot be read, a key is too easy to guess, or other machines could reach the
        server and no key would keep them out.
        """
        keys = [*self.api_keys]
        if self.api_keys_file is not None:
            try:
                lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput("api_keys_file cannot be read", param="api_keys_file") from error
            keys += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not keys:
                raise InvalidInput("api_keys_file holds no key", param="api_keys_file")
        if any(len(key) < MIN_KEY_CHARS for key in keys):
            raise InvalidInput(f"an API key must have at least {MIN_KEY_CHARS} characters", param="api_keys")
        if not (keys or self.insecure or is_loopback(self.host)):
            raise InvalidInput(
                f"{self.host} can be reached from other machines: set SOFTSWAP_API_KEYS, or use --insecure",
                param="host",
            )
        return tuple(keys)


class ClientSettings(_EnvironmentSettings):
    """How commands reach a running server."""

    url: str | None = None
    """A running server, such as http://127.0.0.1:8000, to ask instead of loading a model here."""
    api_key: str | None = None
    """Key for that server. Safer in the environment."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A host name other than localhost could be any machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
