"""`softswap serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from app.cli.options.setting_options import Device, Model, Quantize, RegistryFolder, read_settings, setting

NETWORK, SIZES, OPERATION = "Network", "Sizes", "Operation"


def serve(
    *,
    model: Model = None,
    revision: Annotated[str | None, setting("revision")] = None,
    registry: RegistryFolder = None,
    state: Annotated[Path | None, setting("state")] = None,
    device: Device = None,
    dtype: Annotated[str | None, setting("dtype")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    quantize: Quantize = None,
    attention: Annotated[str | None, setting("attention")] = None,
    layers: Annotated[str | None, setting("layers")] = None,
    eager: Annotated[bool | None, setting("eager", "--eager")] = None,
    watch_interval: Annotated[float | None, setting("watch_interval")] = None,
    host: Annotated[str | None, setting("host", panel=NETWORK)] = None,
    port: Annotated[int | None, setting("port", panel=NETWORK)] = None,
    api_keys: Annotated[str | None, setting("api_keys", "--api-key", "--api-keys", panel=NETWORK)] = None,
    api_keys_file: Annotated[Path | None, setting("api_keys_file", panel=NETWORK)] = None,
    insecure: Annotated[bool | None, setting("insecure", "--insecure", panel=NETWORK)] = None,
    max_model_len: Annotated[int | None, setting("max_model_len", panel=SIZES)] = None,
    max_num_seqs: Annotated[int | None, setting("max_num_seqs", panel=SIZES)] = None,
    max_num_batched_tokens: Annotated[int | None, setting("max_num_batched_tokens", panel=SIZES)] = None,
    block_size: Annotated[int | None, setting("block_size", panel=SIZES)] = None,
    kv_cache_memory: Annotated[str | None, setting("kv_cache_memory", panel=SIZES)] = None,
    prefix_caching: Annotated[
        bool | None, setting("prefix_caching", "--prefix-caching/--no-prefix-caching", panel=SIZES)
    ] = None,
    prefix_store: Annotated[Path | None, setting("prefix_store", panel=SIZES)] = None,
    prefix_store_size: Annotated[str | None, setting("prefix_store_size", panel=SIZES)] = None,
    warm_prompts: Annotated[
        bool | None, setting("warm_prompts", "--warm-prompts/--no-warm-prompts", panel=SIZES)
    ] = None,
    prompt_lookup: Annotated[int | None, setting("prompt_lookup", panel=SIZES)] = None,
    max_waiting_requests: Annotated[int | None, setting("max_waiting_requests", panel=SIZES)] = None,
    max_waiting_tokens: Annotated[int | None, setting("max_waiting_tokens", panel=SIZES)] = None,
    tuning_share: Annotated[float | None, setting("tuning_share", panel=OPERATION)] = None,
    request_timeout: Annotated[float | None, setting("request_timeout", panel=OPERATION)] = None,
    shutdown_timeout: Annotated[float | None, setting("shutdown_timeout", panel=OPERATION)] = None,
    log_level: Annotated[str | None, setting("log_level", panel=OPERATION)] = None,
) -> None:
    """Serve the tasks over HTTP, in OpenAI's format and on routes of our own.

    Without options, this serves the demo tasks on the demo backbone, offline:

        softswap serve
        curl --json '{"input": "a gorgeous, witty film"}' http://127.0.0.1:8000/v1/tasks/sentiment/run

    Each option is also an environment variable: --port is SOFTSWAP_PORT. http://127.0.0.1:8000/docs shows the routes.
    """
    settings = read_settings(**locals())
    from app.main import serve as serve_http
    from app.telemetry import configure_logging

    configure_logging(settings.log_level)
    serve_http(settings)
