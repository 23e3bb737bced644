"""FairQueue: waiting sequences, first come first served within a flow, fair between flows.

The virtual token counter of Sheng et al. 2024 ("Fairness in Serving Large Language Models", OSDI, algorithm 2):
the flow that was served the fewest tokens goes next, and a flow that was idle does not save up credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from app.engine.sequence import Sequence

MAX_IDLE_COUNTERS = 4096


class FairQueue:
    def __init__(self) -> None:
        self._flow_to_sequences: dict[str, deque[Sequence]] = {}
        self._flow_to_num_served: dict[str, int] = {}
        self._last_left = ""
        self._num_sequences = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return self._num_sequences

    def __iter__(self) -> Iterator[Sequence]:
        for sequences in self._flow_to_sequences.values():
            yield from sequences

    @property
    def num_counters(self) -> int:
        """Flows, present and past, whose served tokens are remembered."""
        return len(self._flow_to_num_served)

    def push(self, sequence: Sequence) -> None:
        self._open(sequence.flow).append(sequence)
        self._count(sequence, 1)

    def push_front(self, sequence: Sequence) -> None:
        """Put a preempted sequence back at the head of its flow."""
        self._open(sequence.flow).appendleft(sequence)
        self._count(sequence, 1)

    def peek(self) -> Sequence:
        """The first sequence of the least served flow; the earliest if flows are level."""
        flow = min(self._flow_to_sequences, key=self._rank)
        return self._flow_to_sequences[flow][0]

    def remove(self, sequence: Sequence) -> None:
        sequences = self._flow_to_sequences[sequence.flow]
        sequences.remove(sequence)
        self._count(sequence, -1)
        if not sequences:
            del self._flow_to_sequences[sequence.flow]
            self._last_left = sequence.flow

    def charge(self, flow: str, num_tokens: int) -> None:
        """Count tokens that were computed for a flow."""
        self._flow_to_num_served[flow] = self._flow_to_num_served.get(flow, 0) + num_tokens

    def _count(self, sequence: Sequence, sign: int) -> None:
        """Totals are kept so that other threads can read them while this one changes the queues."""
        self._num_sequences += sign
        self.num_tokens += sign * sequence.num_tokens

    def _rank(self, flow: str) -> tuple[int, int]:
        return self._flow_to_num_served.get(flow, 0), self._flow_to_sequences[flow][0].sequence_id

    def _open(self, flow: str) -> deque[Sequence]:
        """A flow that comes back starts level with the least served one that waits, or the last one that did."""
        if flow in self._flow_to_sequences:
            return self._flow_to_sequences[flow]
        others = list(self._flow_to_sequences) or [self._last_left]
        floor = min(self._flow_to_num_served.get(other, 0) for other in others)
        self._flow_to_num_served[flow] = max(self._flow_to_num_served.get(flow, 0), floor)
        if not self._flow_to_sequences and len(self._flow_to_num_served) > MAX_IDLE_COUNTERS:
            self._flow_to_num_served.clear()
        return self._flow_to_sequences.setdefault(flow, deque())
