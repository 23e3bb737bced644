"""The mixed load: generation for several tasks, next to everything a user could serve them with instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.part import Part, Say, speed
from benchmarks.peers.peft import PeftPeer
from benchmarks.peers.remote import TRANSFORMERS, VLLM, start_peers
from benchmarks.rounds import Contender, interleave, whole
from benchmarks.setup import Setup
from benchmarks.workloads import Workload

ONE_BY_ONE, GROUPED = "PEFT one by one", "PEFT grouped by task"
TIE = 1e-3
"""Logits have a standard deviation of about 1.4; float32 sums in another order differ by about 1e-5."""
NAME_TO_BOUNDS: Mapping[str, Mapping[str, float]] = {
    ONE_BY_ONE: {"float32": 16, "bfloat16": 16},
    GROUPED: {"float32": 4, "bfloat16": 4},
    VLLM: {"float32": 1.0, "bfloat16": 1.1},
    TRANSFORMERS: {"float32": 3, "bfloat16": 5},
}


@dataclass(frozen=True)
class Agreement:
    """Whether two contenders gave the same answers; speed of wrong answers is worth nothing.

    Attributes:
        num_equal: requests whose generated tokens are all the same.
        num_ties: requests whose first tokens that differ had, by PEFT's own logits, values less than TIE apart.
        largest_gap: the largest such distance of any request; bfloat16 rounds values of 4 to 8 to 0.03 already.
    """

    num_compared: int
    num_equal: int
    num_ties: int
    largest_gap: float


def measure(setup: Setup, say: Say) -> Iterator[Part]:
    """Answers are compared with those of PEFT one by one, which are right, or with softswap's if PEFT does not run."""
    setting, workload = setup.setting, setup.workload
    few = workload.every(setting.one_by_one_stride)
    warm, cold = setup.softswap(len(workload.prompts)), setup.softswap(len(workload.prompts))
    for peer in (warm, cold):
        peer.run(replace(workload, num_new_tokens=1))
    if setting.wants(ONE_BY_ONE):
        setup.peft.one_by_one(replace(workload.every(8), num_new_tokens=2))
    with start_peers(setup, workload, say) as peers:
        contenders = [
            Contender("softswap", workload.rotated, whole(warm.run)),
            Contender("softswap, cold tasks", lambda k: workload.rotated(k).with_cold_prompts(f"{k}"), whole(cold.run)),
            *(Contender(name, workload.rotated, whole(peer.run)) for name, peer in peers.name_to_peer.items()),
            Contender(ONE_BY_ONE, few.rotated, whole(setup.peft.one_by_one)),
            Contender(GROUPED, workload.rotated, whole(setup.peft.grouped_by_task)),
        ]
        found = interleave([each for each in contenders if setting.wants(each.name)], setting.num_rounds, say)
    say("comparing answers")
    right = ONE_BY_ONE if ONE_BY_ONE in found else "softswap"
    name_to_few = {
        name: each.first_tokens[:: 1 if name == ONE_BY_ONE else setting.one_by_one_stride]
        for name, each in found.items()
    }
    yield Part(
        name="peers",
        question="How much faster is it than what else serves several tasks?",
        setting={
            "requests": len(workload.requests),
            "tasks": len(workload.prompts),
            "input_tokens": workload.num_input_tokens,
            "PEFT_one_by_one_requests": len(few.requests),
            **setup.kv_cache_setting(warm.config),
            **peers.versions,
        },
        contenders=found,
        ratios={
            f"softswap / {name}": speed(found, "softswap", name, NAME_TO_BOUNDS[name].get(setting.dtype))
            for name in found
            if not name.startswith("softswap")
        },
        agreement={
            f"{name} = {right}": asdict(compare(few, tokens, name_to_few[right], setup.peft))
            for name, tokens in name_to_few.items()
            if name != right
        },
        cannot=peers.name_to_reason,
    )


def compare(
    workload: Workload, ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]], reference: PeftPeer
) -> Agreement:
    """Args: ours, theirs: the tokens of `workload`'s requests, in its order."""
    num_equal, gaps = 0, []
    for request, mine, yours in zip(workload.requests, ours, theirs, strict=True):
        if mine == yours:
            num_equal += 1
        else:
            first = next(index for index in range(len(mine)) if mine[index] != yours[index])
            logits = reference.logits(request, yours[:first])
            gaps.append(abs(float(logits[mine[first]] - logits[yours[first]])))
    num_ties = sum(gap < TIE for gap in gaps)
    return Agreement(len(workload.requests), num_equal, num_ties, round(max(gaps, default=0.0), 5))
