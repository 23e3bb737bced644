"""Setting: the sizes of a run of the serving benchmark, and what all its parts share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch

from app.engine.config import EngineConfig
from app.model.backbone import Backbone
from app.task_prompt import TaskPrompt
from benchmarks.peers import PeftPeer, SoftswapPeer
from benchmarks.shapes import SMOLLM2_135M, TINY, Shape
from benchmarks.workloads import W1, Dimensions, Workload, mixed_tasks, random_prompts

BLOCK_SIZE = 16
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 512


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        one_by_one_stride: PEFT one by one runs every so many-th request; its tokens/s do not depend on how many.
        num_many_tasks: tasks that take turns in the part `many-tasks`.
        num_many_requests: requests in each of that part's runs.
    """

    shape: Shape = SMOLLM2_135M
    dimensions: Dimensions = W1
    repetitions: int = 3
    one_by_one_stride: int = 1
    num_many_tasks: int = 1000
    num_many_requests: int = 128

    @classmethod
    def quick(cls) -> Setting:
        """A rehearsal: every path, no meaning."""
        dimensions = Dimensions(num_requests=8, num_tasks=4, num_virtual_tokens=5, num_new_tokens=4)
        return cls(TINY, dimensions, repetitions=1, num_many_tasks=24, num_many_requests=8)

    def as_json(self) -> dict[str, object]:
        sizes = asdict(self) | {"shape": self.shape.name} | {f"shape_{k}": v for k, v in asdict(self.shape).items()}
        return sizes | {"dtype": "float32", "sampling": "greedy, end-of-sequence ignored"}


class Bench:
    """The backbone, the prompts and W1, which all parts share, and the peers they make."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        shape = setting.shape
        self.backbone = Backbone.from_model(shape.build_model(), shape.build_tokenizer(), name=shape.name)
        self.workload = self.mixed(setting.dimensions)

    def mixed(self, dimensions: Dimensions) -> Workload:
        """A workload of these dimensions with prompts of its own."""
        return mixed_tasks(dimensions, self._prompts(dimensions), self.backbone.vocab_size)

    def softswap(self, num_prefixes: int) -> SoftswapPeer:
        """An engine whose KV cache holds that many prefixes beside all sequences it may run at a time."""
        dimensions = self.setting.dimensions
        longest = dimensions.num_virtual_tokens + dimensions.max_input_tokens + dimensions.num_new_tokens
        num_blocks = MAX_NUM_SEQS * _num_blocks(longest) + num_prefixes * _num_blocks(dimensions.num_virtual_tokens) + 1
        config = EngineConfig.sized_for(
            self.backbone,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            block_size=BLOCK_SIZE,
            max_waiting_requests=2 * self.setting.num_many_tasks,
            prefix_caching=False,  # repetitions have the same texts, and each must compute them
        )
        return SoftswapPeer(self.backbone, replace(config, num_blocks=num_blocks))

    def kv_cache_setting(self, config: EngineConfig) -> dict[str, object]:
        """How large a KV cache is, for a reader."""
        num_tokens = config.num_blocks * config.block_size
        num_bytes = num_tokens * self.backbone.kv_shape.num_bytes_per_token(self.backbone.dtype)
        return {"kv_cache_tokens": num_tokens, "kv_cache_mib": round(num_bytes / 2**20)}

    @cached_property
    def peft(self) -> PeftPeer:
        """PEFT with W1's tasks as adapters, on a copy of the model that is its own."""
        return PeftPeer(self.setting.shape.build_model(), self.workload.prompts)

    def _prompts(self, dimensions: Dimensions) -> tuple[TaskPrompt, ...]:
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
