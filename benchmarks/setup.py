"""Setup: what parts share. Everything is made when it is first asked for, so that no part needs what others need."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.model.backbone import Backbone
from app.telemetry import Metrics
from benchmarks.machine import Device
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.setting import Setting
from benchmarks.workloads import Dimensions, Workload, decisions, mixed_tasks, random_prompts

if TYPE_CHECKING:
    from benchmarks.peers.peft import PeftPeer
    from benchmarks.server import RunningServer

LABELS = "0123"


class Setup:
    """The backbone, the mixed load, and the engines and servers that are made for them."""

    def __init__(self, setting: Setting, device: str = "cpu") -> None:
        self.setting = setting
        self.device = Device(torch.device(device), getattr(torch, setting.dtype), is_rehearsal=setting.is_smoke)

    @cached_property
    def folder(self) -> Path:
        """The saved model."""
        return self.setting.shape.saved()

    @cached_property
    def backbone(self) -> Backbone:
        """From a folder, as a server has it, on a CPU; on another device it is made there."""
        if self.device.place.type == "cpu":
            return Backbone.load(self.folder, dtype=self.setting.dtype, device="cpu")
        return self.setting.shape.build_backbone(self.device.place, self.device.dtype)

    @cached_property
    def workload(self) -> Workload:
        """The mixed load that most parts share."""
        return self.mixed(self.setting.dimensions)

    @cached_property
    def peft(self) -> PeftPeer:
        """PEFT with the mixed load's tasks as adapters, on a copy of the model that is its own."""
        from benchmarks.peers.peft import PeftPeer

        return PeftPeer(self.setting.shape.build_model().to(self.backbone.dtype), self.workload.prompts)

    def mixed(self, dimensions: Dimensions) -> Workload:
        """A workload of these dimensions with prompts of its own."""
        return mixed_tasks(dimensions, random_prompts(self.backbone, dimensions), self.backbone.vocab_size)

    def decisions(self, num_requests: int) -> Workload:
        """Requests over `num_decision_tasks` tasks, each answered with one of four labels."""
        dimensions = replace(
            self.setting.dimensions, num_requests=num_requests, num_tasks=self.setting.num_decision_tasks
        )
        to_ids = self.backbone.tokenizer.convert_tokens_to_ids
        labels = {label: to_ids(label) for label in LABELS}
        prompts = random_prompts(self.backbone, dimensions)
        return decisions(dimensions, prompts, to_ids(list(string.ascii_lowercase)), labels)

    def texts(self, workload: Workload) -> list[str]:
        """Of requests made of letters, which the tokenizer turns into the same ids again."""
        return [self.backbone.tokenizer.decode(list(request.token_ids)) for request in workload.requests]

    def config(self, num_prefixes: int, num_virtual_tokens: int | None = None) -> EngineConfig:
        """A KV cache that holds that many prefixes and all sequences that may run at a time."""
        setting, dimensions = self.setting, self.setting.dimensions
        num_virtual = dimensions.num_virtual_tokens if num_virtual_tokens is None else num_virtual_tokens
        longest = num_virtual + dimensions.max_input_tokens + dimensions.num_new_tokens
        config = EngineConfig.sized_for(
            self.backbone,
            max_num_seqs=setting.max_num_seqs,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            max_model_len=2 * longest,
            max_waiting_requests=4096,
            prefix_caching=False,  # rounds have the same texts, and each must compute them
            kv_cache_bytes=2**30,
        )
        num_each, num_prefix = (-(-number // config.block_size) for number in (longest, num_virtual))
        return replace(config, num_blocks=setting.max_num_seqs * num_each + num_prefixes * num_prefix + 1)

    def softswap(
        self, num_prefixes: int, num_virtual_tokens: int | None = None, prefix_store: Path | None = None
    ) -> SoftswapPeer:
        config = self.config(num_prefixes, num_virtual_tokens)
        return SoftswapPeer(
            Engine(self.backbone, replace(config, prefix_store=prefix_store, prefix_store_bytes=2**40), Metrics())
        )

    @contextmanager
    def server(self, workload: Workload, **settings: Any) -> Iterator[RunningServer]:
        """`softswap serve` with the workload's tasks and room for all their prefixes. Args: settings: of `serve`."""
        from benchmarks.server import publish_tasks, serve

        config = self.config(len(workload.prompts))
        with TemporaryDirectory() as folder:
            publish_tasks(Path(folder), self.backbone, workload.prompts, workload.label_texts)
            with serve(
                self.folder,
                Path(folder),
                dtype=self.setting.dtype,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                block_size=config.block_size,
                kv_cache_memory=self.kv_cache_bytes(config),
                prefix_caching=False,
                **settings,
            ) as server:
                yield server

    def kv_cache_bytes(self, config: EngineConfig) -> int:
        per_token = self.backbone.kv_shape.num_bytes_per_token(self.backbone.dtype)
        return config.num_blocks * config.block_size * per_token

    def kv_cache_setting(self, config: EngineConfig) -> dict[str, object]:
        """How large a KV cache is, for a reader."""
        return {
            "kv_cache_tokens": config.num_blocks * config.block_size,
            "kv_cache_mib": round(self.kv_cache_bytes(config) / 2**20),
        }
