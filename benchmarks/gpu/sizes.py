"""Sizes: how much of everything is measured; on a device, and in a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from app.engine.config import EngineConfig
from app.model.backbone import Backbone
from benchmarks.workloads import Dimensions


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    decode_batches: sequences of the decode steps.
    num_context: tokens each has when the measured steps begin.
    num_decode_steps: measured ones.
    num_prefill_tokens, num_text_tokens: of a prefill step, and of each of its texts.
    dimensions: of the mixed load.
    num_tasks: registered, of which a load draws at random.
    num_cold: cold requests, one after another.
    num_rounds: of every load.
    """

    decode_batches: tuple[int, ...] = (1, 8, 64, 256)
    num_context: int = 512
    num_decode_steps: int = 40
    num_prefill_tokens: int = 8192
    num_text_tokens: int = 512
    dimensions: Dimensions = field(default_factory=lambda: Dimensions(num_requests=256))
    num_tasks: int = 10_000
    num_cold: int = 20
    num_rounds: int = 3

    @classmethod
    def smoke(cls) -> Sizes:
        return cls(
            decode_batches=(1, 3),
            num_context=24,
            num_decode_steps=3,
            num_prefill_tokens=64,
            num_text_tokens=16,
            dimensions=Dimensions(
                num_requests=6, num_tasks=3, num_virtual_tokens=5, max_input_tokens=30, num_new_tokens=4
            ),
            num_tasks=24,
            num_cold=2,
            num_rounds=1,
        )

    @property
    def num_positions(self) -> int:
        """Of the longest sequence of all parts."""
        decode = self.num_context + 2 * self.num_decode_steps + 8
        d = self.dimensions
        return max(decode, self.num_text_tokens + 1, d.num_virtual_tokens + d.max_input_tokens + d.num_new_tokens)

    def config(self, backbone: Backbone, **fields: Any) -> EngineConfig:
        """Of an engine for every part: no text is found again, and the rest is as the device has it by default."""
        num_seqs = max(*self.decode_batches, 4)
        prefixes = 64 * (-(-self.dimensions.num_virtual_tokens // 256) * 256)
        num_tokens = 2 * num_seqs * -(-self.num_positions // 256) * 256 + prefixes
        config = EngineConfig.sized_for(
            backbone,
            max_model_len=self.num_positions,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=max(self.num_prefill_tokens, num_seqs),
            kv_cache_bytes=min(32 * 2**30, num_tokens * backbone.kv_shape.num_bytes_per_token(backbone.dtype)),
            max_waiting_requests=100_000,
            prefix_caching=False,
        )
        return replace(config, **fields)
