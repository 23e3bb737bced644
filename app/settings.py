"""Settings: the only reader of the environment. Every flag of `softswap serve` has a twin `SOFTSWAP_...` here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.errors import InvalidInput

APP_FOLDER = Path(__file__).parent
DEMO_BACKBONE = APP_FOLDER / "demo" / "backbone"
MIN_KEY_CHARS = 16


def demo_tasks() -> Path:
    """`prompts/` of a checkout; in an installed package the copy that the wheel carries."""
    checkout = APP_FOLDER.parent / "prompts"
    return checkout if checkout.is_dir() else APP_FOLDER / "demo" / "prompts"


def own_tasks() -> Path:
    """Of whoever runs this, where nothing else was said. Raises InvalidInput."""
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "softswap" / "prompts"
    except RuntimeError as error:
        raise InvalidInput("there is no home folder to keep tasks in; name one", param="registry") from error


class Settings(BaseSettings):
    """What a server is started with: arguments first, then the environment, then these defaults."""

    model_config = SettingsConfigDict(
        env_prefix="SOFTSWAP_", extra="forbid", frozen=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    model: str = Field(
        str(DEMO_BACKBONE),
        min_length=1,
        description="The backbone: a directory in Hugging Face layout, or a hub id. The demo backbone without it.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the hub repository.")
    registry: Path | None = Field(
        None,
        description="Folder of the tasks. Without it the demo tasks, and yours in $XDG_DATA_HOME/softswap/prompts, by "
        "default ~/.local/share/softswap/prompts.",
    )
    state: Path | None = Field(
        None, description="Folder of uploads, tuning jobs and half-done work; `.state` in the registry without it."
    )
    watch_interval: float = Field(
        2.0, ge=0, le=3600, description="Seconds between looks for task folders that appeared or changed; 0 is never."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and cache; auto is the checkpoint's own on CUDA, float32 on CPU."
    )
    attention: Literal["auto", "sdpa"] = Field(
        "auto", description="auto is the fastest that can run, on CPU compiled at first use; sdpa is torch's own."
    )
    layers: Literal["auto", "torch"] = Field(
        "auto", description="auto is C code on a CPU where it is measured to be faster; torch is torch's own."
    )
    eager: bool = Field(
        False, description="On CUDA, without decode graphs and asynchronous scheduling; both are never used on CPU."
    )
    max_model_len: int | None = Field(
        None, ge=8, description="Positions of a sequence, virtual tokens included; the model's own without it."
    )
    max_num_seqs: int | None = Field(None, ge=1, le=4096, description="Sequences computed at a time.")
    max_num_batched_tokens: int | None = Field(None, ge=16, le=1_048_576, description="Tokens computed in a step.")
    block_size: int | None = Field(
        None, ge=1, le=1024, description="Tokens in a block of the cache; a multiple of 256 on CUDA."
    )
    kv_cache_memory: int | None = Field(
        None, ge=2**16, description="Bytes for keys and values, such as 2147483648, 512MiB or 4GB."
    )
    prefix_caching: bool = Field(
        True, description="Keep computed text for requests of the same key that begin alike, while there is room."
    )
    prefix_store: Path | None = Field(
        None, description="Folder that keeps task prompts' keys and values when memory has no room; none without it."
    )
    prefix_store_size: int = Field(
        10 * 2**30, ge=2**20, description="Bytes of all its files, such as 10GiB; the least recently used go."
    )
    max_waiting_requests: int = Field(
        1024, ge=1, le=1_000_000, description="Requests that may wait; more are refused with 503."
    )
    max_waiting_tokens: int | None = Field(
        None, ge=1, description="Tokens of text that may wait; more are refused with 503."
    )
    tuning_share: float = Field(
        0.2, ge=0, lt=1, description="Share of the device's time that tuning gets while requests run; under load, none."
    )
    request_timeout: float = Field(
        600.0, gt=0, le=3600, description="Seconds a request may take that sends no X-Request-Timeout."
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description=f"Keys, separated by commas, of {MIN_KEY_CHARS} characters or more; every route asks for one."
    )
    api_keys_file: Path | None = Field(None, description="File with more keys, one a line; lines with # are comments.")
    insecure: bool = Field(False, description="Listen on other than this machine's own addresses without any key.")
    shutdown_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds running requests get to end when the server is asked to stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least weight of a log line.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("kv_cache_memory", "prefix_store_size", mode="before")
    @classmethod
    def _parse_size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @property
    def registry_folder(self) -> Path:
        """Where tasks are written."""
        return self.registry or own_tasks()

    @property
    def tasks_below(self) -> Path | None:
        """What is read where the registry's folder has no task of a name, and never written."""
        return demo_tasks() if self.registry is None else None

    @property
    def state_folder(self) -> Path:
        return self.state or self.registry_folder / ".state"

    def read_api_keys(self) -> tuple[str, ...]:
        """Keys of both sources. Raises InvalidInput: the file cannot be read, or a key is too easy to guess."""
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
        return tuple(keys)

    def require_safe_address(self, *, has_keys: bool) -> None:
        """Raises InvalidInput: others could reach the server, and nothing would keep them out."""
        if not (has_keys or self.insecure or is_loopback(self.host)):
            raise InvalidInput(
                f"{self.host} can be reached from other machines: set SOFTSWAP_API_KEYS, or say --insecure",
                param="host",
            )


class ClientSettings(BaseSettings):
    """What the command line uses to reach a running server."""

    model_config = SettingsConfigDict(env_prefix="SOFTSWAP_", env_ignore_empty=True, hide_input_in_errors=True)

    url: str | None = Field(None, description="A running server that commands ask instead of working here.")
    api_key: str | None = Field(None, description="The key for that server.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_UNIT_TO_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """Bytes of "2147483648", "512MiB" or "4 GB". Raises ValueError."""
    digits = text.strip().rstrip("BKMGIbkmgi \t")
    unit = text.strip().removeprefix(digits).strip().lower()
    try:
        return int(float(digits) * _UNIT_TO_BYTES[unit])
    except (KeyError, OverflowError, ValueError):
        raise ValueError("must be a number of bytes, such as 2147483648, 512MiB or 4GB") from None
