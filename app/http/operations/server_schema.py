"""`/health`, `/ready` and `/v1/server`."""

from __future__ import annotations

from typing import Literal

from app.answers.views.reply import Reply


class Status(Reply):
    """Yes; a no is an error with status 503."""

    status: Literal["ok"] = "ok"


class BackboneObject(Reply):
    """The frozen model that all tasks share."""

    name: str
    fingerprint: str
    device: str
    dtype: str
    quantize: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    has_chat_template: bool


class EngineObject(Reply):
    """Sizes and present load of the engine."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    max_waiting_requests: int
    max_waiting_tokens: int
    prompt_lookup: int
    num_running: int
    num_waiting: int
    num_free_blocks: int


class TuningObject(Reply):
    """Whether it takes files and runs jobs."""

    is_available: bool
    fault: str | None
    num_unfinished_jobs: int


class ServerObject(Reply):
    """What this server is, and what it takes."""

    object: Literal["server"] = "server"
    versions: dict[str, str]
    backbone: BackboneObject
    engine: EngineObject
    tuning: TuningObject
    num_tasks: int
    limits: dict[str, int | float]
    request_timeout_s: float
    has_api_keys: bool
