"""W2: one of four labels for each text, over many tasks."""

from __future__ import annotations

from benchmarks.parts.ratios import speed
from benchmarks.peers.roster import start_roster
from benchmarks.report import Part, Say
from benchmarks.rounds import Contender, interleave
from benchmarks.setting import Bench

BOUND = 3.0
NAME_TO_REASON = {
    "vLLM, LoRA adapters": "not tried: changing among 64 adapters took longer than all the others together"
}


def measure_decisions(bench: Bench, say: Say) -> Part:
    """A decision is one label id of four; peers that can are told to generate one token out of these."""
    workload = bench.decisions(4 * bench.setting.num_decision_tasks)
    engine = bench.softswap(len(workload.prompts))
    engine.run(workload.rotated(-1))
    with start_roster(bench, workload, say, NAME_TO_REASON) as roster:
        found = interleave(
            [
                Contender("softswap", workload.rotated, engine.run),
                *(Contender(name, workload.rotated, peer.run) for name, peer in roster.name_to_peer.items()),
            ],
            bench.setting.repetitions,
            say,
        )
    ours = found["softswap"].first_tokens
    speeds = {name: each.median_tokens_per_s for name, each in found.items() if name != "softswap"}
    best = max(speeds, key=speeds.__getitem__, default=None)
    return Part(
        name="decisions",
        question="how many decisions a second, over many tasks?",
        setting={
            "requests": len(workload.requests),
            "tasks": len(workload.prompts),
            "labels": len(workload.labels),
            "input_tokens": workload.num_input_tokens,
            **roster.versions,
        },
        name_to_measurement=found,
        name_to_figures={
            f"{name}: decisions equal to softswap's": {
                "requests": sum(one == other for one, other in zip(ours, each.first_tokens, strict=True))
            }
            for name, each in found.items()
            if name != "softswap" and "LoRA" not in name
        },
        ratios=tuple(
            speed(f"softswap / {name}", found, "softswap", name, at_least=BOUND if name == best else None)
            for name in speeds
        ),
        name_to_reason=roster.name_to_reason,
    )
