"""Settings: the only reader of the environment. Every flag of `softswap serve` has a twin `SOFTSWAP_...` here.

What each is for stands in `app/setting_texts.py`, which `--help` shows without pydantic.
"""

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

    model: str = Field(str(DEMO_BACKBONE), min_length=1)
    revision: str | None = None
    registry: Path | None = None
    state: Path | None = None
    watch_interval: float = Field(2.0, ge=0, le=3600)
    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8000, ge=0, le=65535)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    quantize: Literal["none", "int8"] = "none"
    attention: Literal["auto", "sdpa"] = "auto"
    layers: Literal["auto", "torch"] = "auto"
    eager: bool = False
    max_model_len: int | None = Field(None, ge=8)
    max_num_seqs: int | None = Field(None, ge=1, le=4096)
    max_num_batched_tokens: int | None = Field(None, ge=16, le=1_048_576)
    block_size: int | None = Field(None, ge=1, le=1024)
    kv_cache_memory: int | None = Field(None, ge=2**16)
    prefix_caching: bool = True
    prefix_store: Path | None = None
    prefix_store_size: int = Field(10 * 2**30, ge=2**20)
    warm_prompts: bool = True
    prompt_lookup: int = Field(0, ge=0, le=16)
    max_waiting_requests: int = Field(1024, ge=1, le=1_000_000)
    max_waiting_tokens: int | None = Field(None, ge=1)
    tuning_share: float = Field(0.2, ge=0, lt=1)
    request_timeout: float = Field(600.0, gt=0, le=3600)
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    api_keys_file: Path | None = None
    insecure: bool = False
    shutdown_timeout: float = Field(30.0, ge=0, le=3600)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

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

    url: str | None = None
    api_key: str | None = None


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
