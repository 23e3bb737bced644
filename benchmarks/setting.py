"""Setting: what a run of the benchmarks is told, and the sizes of what it measures."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.models import SMOLLM2_135M, TINY, Shape
from benchmarks.workloads import MIXED, Dimensions

PEERS = ("peft", "transformers", "vllm", "llama.cpp")


@dataclass(frozen=True)
class Setting:
    """Attributes:
    dtype: "float32" or "bfloat16", of the weights and of what is computed.
    threads: that torch computes with; None leaves it to torch.
    peers: the first words of the names of those that are measured too, in small letters.
    other: trees: another source tree of softswap.
    only: gpu: some of its steps; empty means all.
    budget_s: gpu: no step begins after that.
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
        other = None if self.other is None else str(self.other)
        return asdict(self) | {"shape": self.shape.name, "other": other, "sampling": "greedy, end-of-sequence ignored"}
