"""What a run is told and the sizes of what it measures, and what its parts share, made when it is first asked for."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from benchmarks.models import SMOLLM2_135M, TINY, Shape
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.workloads import MIXED, Dimensions, Workload, mixed_tasks, random_prompts

if TYPE_CHECKING:
    from benchmarks.peers.peft import PeftPeer
    from benchmarks.server import RunningServer

LABELS = "0123"
PEERS = ("peft", "transformers", "vllm")


@dataclass(frozen=True)
class Setting:
    """Attributes:
    dtype: "float32" or "bfloat16", of the weights and of what is computed.
    threads: that torch computes with; None leaves it to torch.
    peers: the first words of the names of those that are measured too, in small letters.
    other: trees: another source tree of softswap.
    only: gpu: some of its steps; tuning: some data sets; empty means all.
    data, model: tuning: the folder of data sets, and the backbone.
    budget_s: gpu: no step begins after that; tuning: of each run.
    one_by_one_stride: the slowest contenders run every n-th request; their tokens/s do not depend on how many.
    num_registered: many-tasks: tasks.
    num_many_requests: many-tasks: requests of a round.
    num_decision_tasks: decisions: tasks.
    num_decisions: http and trees: decisions in one call.
    phase_s: co-serving: seconds of each load in a round.
    max_num_seqs, max_num_batched_tokens: of a step.
    decode_batches: decode: sequences of a step.
    """

    shape: Shape = SMOLLM2_135M
    dimensions: Dimensions = MIXED
    dtype: str = "float32"
    threads: int | None = None
    num_rounds: int = 3
    peers: tuple[str, ...] = PEERS
    other: Path | None = None
    only: tuple[str, ...] = ()
    data: Path | None = None
    model: str | None = None
    budget_s: float = 540.0
    is_smoke: bool = False
    one_by_one_stride: int = 8
    num_registered: int = 10_000
    num_many_requests: int = 64
    num_decision_tasks: int = 64
    num_decisions: int = 1000
    phase_s: float = 12.0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    decode_batches: tuple[int, ...] = (1, 8, 32)

    @classmethod
    def smoke(cls) -> Setting:
        """A rehearsal: every path, no meaning."""
        return cls(
            TINY,
            Dimensions(num_requests=8, num_tasks=4, num_virtual_tokens=5, num_new_tokens=4),
            num_rounds=1,
            is_smoke=True,
            one_by_one_stride=2,
            num_registered=24,
            num_many_requests=8,
            num_decision_tasks=4,
            num_decisions=80,
            phase_s=2.0,
            decode_batches=(1, 3),
        )

    def wants(self, contender: str) -> bool:
        """Whether it is softswap or a peer that was asked for."""
        word = re.split("[ ,]", contender.lower())[0]
        return word == "softswap" or word in self.peers

    def as_json(self) -> dict[str, object]:
        paths = {name: path and str(path) for name, path in (("other", self.other), ("data", self.data))}
        return asdict(self) | {"shape": self.shape.name, **paths, "sampling": "greedy, end-of-sequence ignored"}


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
        letters, labels = to_ids(list(string.ascii_lowercase)), to_ids(list(LABELS))
        mixed = mixed_tasks(dimensions, random_prompts(self.backbone, dimensions), len(letters))
        spelled = mixed.each(lambda request: replace(request, token_ids=tuple(letters[i] for i in request.token_ids)))
        return replace(spelled, num_new_tokens=1, labels=tuple(labels), label_texts=tuple(LABELS))

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
            max_model_len=min(2 * longest, self.backbone.max_model_len),
            max_waiting_requests=4096,
            prefix_caching=False,  # rounds have the same texts, and each must compute them
            kv_cache_bytes=2**30,
        )
        num_each, num_prefix = (-(-number // config.block_size) for number in (longest, num_virtual))
        return replace(config, num_blocks=setting.max_num_seqs * num_each + num_prefixes * num_prefix + 1)

    def softswap(self, num_prefixes: int, num_virtual_tokens: int | None = None, **changes: Any) -> SoftswapPeer:
        """An engine of its own. Args: changes: to the fields of `config`'s."""
        config = replace(self.config(num_prefixes, num_virtual_tokens), prefix_store_bytes=2**40, **changes)
        return SoftswapPeer(Engine(self.backbone, config, Metrics()))

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
