"""`softswap serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import Device, Model, RegistryFolder, read_settings

NETWORK, MODEL, SIZES, OPERATION = "Network", "Model and tasks", "Sizes", "Operation"


def serve(
    *,
    model: Model = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repository.")] = None,
    registry: RegistryFolder = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder of uploads and tuning jobs. (default: .state in the registry)")
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="auto is the fastest that can run; sdpa is torch's own.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="auto is C code where it is faster; torch is torch's own.")] = None,
    eager: Annotated[
        bool | None, typer.Option("--eager", help="On CUDA, without decode graphs and asynchronous scheduling.")
    ] = None,
    watch_interval: Annotated[
        float | None, typer.Option(help="Seconds between looks for dropped task folders; 0 is never.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)", rich_help_panel=NETWORK)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one. (default: 8000)", rich_help_panel=NETWORK)
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            "--api-keys",
            help="Keys, separated by commas. Better in SOFTSWAP_API_KEYS.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File with keys, one a line.", rich_help_panel=NETWORK)
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine without a key.", rich_help_panel=NETWORK),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Positions of a sequence, virtual tokens included.", rich_help_panel=SIZES)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences computed at a time.", rich_help_panel=SIZES)
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens computed in a step.", rich_help_panel=SIZES)
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(help="Tokens in a block of the cache; a multiple of 256 on CUDA.", rich_help_panel=SIZES),
    ] = None,
    kv_cache_memory: Annotated[
        str | None, typer.Option(help="For keys and values: 512MiB, 4GB.", rich_help_panel=SIZES)
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Keep computed text for requests that begin alike.",
            rich_help_panel=SIZES,
        ),
    ] = None,
    prefix_store: Annotated[
        Path | None,
        typer.Option(help="Folder for prompts' keys and values that memory has no room for.", rich_help_panel=SIZES),
    ] = None,
    prefix_store_size: Annotated[
        str | None, typer.Option(help="Of its files together. (default: 10GiB)", rich_help_panel=SIZES)
    ] = None,
    max_waiting_requests: Annotated[
        int | None, typer.Option(help="Requests that may wait before 503.", rich_help_panel=SIZES)
    ] = None,
    max_waiting_tokens: Annotated[
        int | None, typer.Option(help="Tokens that may wait before 503.", rich_help_panel=SIZES)
    ] = None,
    tuning_share: Annotated[
        float | None,
        typer.Option(help="Share of the device for tuning while requests run, such as 0.2.", rich_help_panel=OPERATION),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for requests without X-Request-Timeout.", rich_help_panel=OPERATION),
    ] = None,
    shutdown_timeout: Annotated[
        float | None, typer.Option(help="Seconds running requests get at a stop.", rich_help_panel=OPERATION)
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", rich_help_panel=OPERATION)
    ] = None,
) -> None:
    """Serve the tasks over HTTP, in OpenAI's wire format and on routes of our own.

    Without options it serves the demo tasks on the demo backbone, offline:

        softswap serve
        curl --json '{"input": "a gorgeous, witty film"}' http://127.0.0.1:8000/v1/tasks/sentiment/run

    Every option has a twin in the environment: --port is SOFTSWAP_PORT. http://127.0.0.1:8000/docs shows the routes.
    """
    settings = read_settings(**locals())
    from app.main import serve as serve_http
    from app.telemetry import configure_logging

    configure_logging(settings.log_level)
    serve_http(settings)
