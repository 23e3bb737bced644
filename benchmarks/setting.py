"""Setting: the sizes of a run, and Bench: what all its parts share."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from app.engine.config import EngineConfig
from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt
from benchmarks.peers.peft import PeftPeer
from benchmarks.peers.softswap import SoftswapPeer
from benchmarks.saved_model import saved_model
from benchmarks.server import ROOT, RunningServer, publish_tasks, serve
from benchmarks.shapes import SMOLLM2_135M, TINY, Shape
from benchmarks.workloads import W1, Dimensions, Workload, decisions, mixed_tasks, random_prompts

BLOCK_SIZE = 16
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 512
LABELS = "0123"
PEERS = ("peft", "transformers", "vllm", "llama.cpp")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        dtype: "float32" or "bfloat16", of the weights and of what is computed.
        peers: the first words of the names of those that run beside softswap, in small letters.
        one_by_one_stride: the slowest contenders run every so many-th request; their tokens/s do not depend on how
            many.
        num_registered: tasks of `many-tasks`.
        num_many_requests: requests in each of that part's runs.
        num_decision_tasks: tasks of `decisions`.
        num_decisions: in one call.
        other: another source tree of softswap, for `trees`.
        threads: that torch computes with; None leaves it to torch.
        arrivals_s: how long requests arrive, at each rate.
    """

    shape: Shape = SMOLLM2_135M
    dimensions: Dimensions = W1
    dtype: str = "float32"
    peers: tuple[str, ...] = PEERS
    repetitions: int = 3
    one_by_one_stride: int = 8
    num_registered: int = 10_000
    num_many_requests: int = 64
    num_decision_tasks: int = 64
    num_decisions: int = 1000
    arrivals_s: float = 15.0
    other: Path | None = None
    threads: int | None = None

    @classmethod
    def smoke(cls) -> Setting:
        """A rehearsal: every path, no meaning."""
        return cls(
            TINY,
            Dimensions(num_requests=8, num_tasks=4, num_virtual_tokens=5, num_new_tokens=4),
            repetitions=1,
            one_by_one_stride=2,
            num_registered=24,
            num_many_requests=8,
            num_decision_tasks=4,
            num_decisions=80,
            arrivals_s=0.3,
        )

    def wants(self, contender: str) -> bool:
        """Whether it is softswap or a peer that was asked for."""
        word = re.split("[ ,]", contender.lower())[0]
        return word == "softswap" or word in self.peers

    def as_json(self) -> dict[str, object]:
        sizes = asdict(self) | {"shape": self.shape.name} | {f"shape_{k}": v for k, v in asdict(self.shape).items()}
        sizes |= {"other": None if self.other is None else str(self.other)}
        return sizes | {"sampling": "greedy, end-of-sequence ignored"}


class Bench:
    """The backbone, the prompts and W1, which all parts share, and the peers they make."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.folder: Path = saved_model(setting.shape)
        self.backbone = Backbone.load(self.folder, dtype=setting.dtype, device="cpu")
        self.workload = self.mixed(setting.dimensions)

    def mixed(self, dimensions: Dimensions) -> Workload:
        """A workload of these dimensions with prompts of its own."""
        return mixed_tasks(dimensions, self.prompts(dimensions), self.backbone.vocab_size)

    def decisions(self, num_requests: int) -> Workload:
        """W2: so many requests over `num_decision_tasks` tasks, each answered with one of four labels."""
        dimensions = replace(
            self.setting.dimensions, num_requests=num_requests, num_tasks=self.setting.num_decision_tasks
        )
        to_ids = self.backbone.tokenizer.convert_tokens_to_ids
        labels = {label: to_ids(label) for label in LABELS}
        return decisions(dimensions, self.prompts(dimensions), to_ids(list(string.ascii_lowercase)), labels)

    def texts(self, workload: Workload) -> list[str]:
        """Of requests made of letters, which the tokenizer turns into the same ids again."""
        return [self.backbone.tokenizer.decode(list(request.token_ids)) for request in workload.requests]

    def config(self, num_prefixes: int, num_virtual_tokens: int | None = None) -> EngineConfig:
        """A KV cache that holds that many prefixes beside all sequences that may run at a time."""
        dimensions = self.setting.dimensions
        num_virtual = dimensions.num_virtual_tokens if num_virtual_tokens is None else num_virtual_tokens
        longest = num_virtual + dimensions.max_input_tokens + dimensions.num_new_tokens
        num_blocks = MAX_NUM_SEQS * _num_blocks(longest) + num_prefixes * _num_blocks(num_virtual) + 1
        config = EngineConfig.sized_for(
            self.backbone,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            block_size=BLOCK_SIZE,
            max_waiting_requests=4096,
            prefix_caching=False,  # repetitions have the same texts, and each must compute them
        )
        return replace(config, num_blocks=num_blocks)

    def softswap(
        self, num_prefixes: int, num_virtual_tokens: int | None = None, prefix_store: Path | None = None
    ) -> SoftswapPeer:
        config = self.config(num_prefixes, num_virtual_tokens)
        return SoftswapPeer(self.backbone, replace(config, prefix_store=prefix_store, prefix_store_bytes=2**40))

    @contextmanager
    def server(self, workload: Workload, *, tree: Path = ROOT, **settings: object) -> Iterator[RunningServer]:
        """`softswap serve` with the workload's tasks and room for all their prefixes.

        Args: tree, settings: as `serve` takes them.
        """
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
                tree=tree,
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

    @cached_property
    def peft(self) -> PeftPeer:
        """PEFT with W1's tasks as adapters, on a copy of the model that is its own."""
        return PeftPeer(self.setting.shape.build_model().to(self.backbone.dtype), self.workload.prompts)

    def prompts(self, dimensions: Dimensions) -> tuple[TaskPrompt, ...]:
        rows = self.backbone.embed(torch.arange(min(1024, self.backbone.vocab_size)))
        return random_prompts(
            dimensions.num_tasks,
            dimensions.num_virtual_tokens,
            self.backbone.hidden_size,
            self.backbone.fingerprint,
            row_norm=float(rows.norm(dim=-1).mean()),
        )


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)
