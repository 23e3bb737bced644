"""Whether two contenders gave the same answers; speed of wrong answers is worth nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.peft import PeftPeer
from benchmarks.workloads import Workload

TIE = 1e-3
"""Logits have a standard deviation of about 1.4; float32 sums in another order differ by about 1e-5."""


@dataclass(frozen=True)
class Agreement:
    """Counts of requests.

    Attributes:
        num_compared: requests both contenders ran.
        num_equal: all generated tokens are the same.
        num_ties: the first tokens that differ had, by PEFT's own logits, values less than TIE apart.
        largest_gap: the largest such distance of any request; bfloat16 rounds values of 4 to 8 to 0.03 already.
    """

    num_compared: int
    num_equal: int
    num_ties: int
    largest_gap: float

    @property
    def is_complete(self) -> bool:
        return self.num_equal + self.num_ties == self.num_compared


def compare(
    workload: Workload, ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]], reference: PeftPeer
) -> Agreement:
    """Args: ours, theirs: the tokens of `workload`'s requests, in its order."""
    num_equal, gaps = 0, []
    for request, mine, yours in zip(workload.requests, ours, theirs, strict=True):
        if mine == yours:
            num_equal += 1
        elif len(mine) == len(yours):
            first = next(index for index in range(len(mine)) if mine[index] != yours[index])
            logits = reference.logits(request, yours[:first])
            gaps.append(abs(float(logits[mine[first]] - logits[yours[first]])))
    num_ties = sum(gap < TIE for gap in gaps)
    return Agreement(len(workload.requests), num_equal, num_ties, round(max(gaps, default=0.0), 5))
